"""What a student keeps of its teachers, on the cache's held-out rows. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from student.encoding import FloatArray, unit
from student.evaluation.asymmetric import ALL_TEACHERS, found_by, spaces
from student.evaluation.retention import Geometry, Retention, compare
from student.evaluation.student_vectors import vectors_of
from student.model import Student
from student.stages import FULL_HEAD
from teacher_cache.reader import CacheReader


def evaluate(
    student: Student,
    untrained: Student,
    reader: CacheReader,
    teachers: Sequence[str],
    *,
    heads: Sequence[str],
) -> dict[str, Any]:
    """What the named heads keep of every teacher and of all of them together, as plain data.

    `untrained` is the student's initialisation: its pooled state is the first line, to show what
    training was worth. The figures are those of `measure`.

    Raises:
        ValueError: the cache has fewer than three held-out rows.
    """
    texts = reader.texts(reader.held_out_rows)
    return measure(vectors_of(student, untrained, heads)(texts, ""), reader, teachers)


def measure(
    vectors: Mapping[str, FloatArray],
    reader: CacheReader,
    teachers: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare vectors of the held-out rows, by name, with the teachers'; `advance` counts rows.

    Gives `rows`; `widths` of the vectors; `retention`, for each vector and each of the cache's
    teachers (`retention.Retention`); and `asymmetric`, for FC1 and each teacher that it learned
    from, how much of the teacher's own neighbours the student's query finds among the teacher's
    vectors. `teachers` are those it learned from. Against one of several, FC1 stands with that
    teacher's columns of it; against one that it did not learn from, with all, and without a cosine.

    Raises:
        ValueError: the cache has fewer than three held-out rows.
    """
    rows = reader.held_out_rows
    columns = spoken(reader, teachers)
    targets = {}
    for name in measured_against(reader):
        # All of them in the order that FC1 learned, where it learned from all.
        every = teachers if ALL_TEACHERS in columns else None
        target = reader.vectors(rows, every if name == ALL_TEACHERS else [name])
        targets[name] = Geometry.of(target.astype(np.float32))
        advance(len(rows))
    kept = {}
    for name, values in vectors.items():
        kept[name] = _retention(name, values, targets, columns)
        advance(len(rows))
    speaking = {name: values for name, values in vectors.items() if name == FULL_HEAD}
    return {
        "rows": len(rows),
        "widths": {name: values.shape[1] for name, values in vectors.items()},
        "retention": kept,
        "asymmetric": {
            name: {
                teacher: found_by(unit(values[:, span]), targets[teacher])
                for teacher, span in columns.items()
            }
            for name, values in speaking.items()
        },
    }


def _retention(
    name: str,
    values: FloatArray,
    targets: Mapping[str, Geometry],
    columns: Mapping[str, slice],
) -> dict[str, Retention]:
    whole = Geometry.of(values)

    def against(teacher: str, target: Geometry) -> Retention:
        span = columns.get(teacher)
        if name != FULL_HEAD or span is None:
            return compare(whole, target, same_space=False)
        part = whole if span == slice(0, values.shape[1]) else Geometry.of(values[:, span])
        return compare(part, target, same_space=True)

    return {teacher: against(teacher, target) for teacher, target in targets.items()}


def measured_against(reader: CacheReader) -> list[str]:
    """The cache's teachers, and before them, where there are several, all of them together."""
    return list(spaces(reader.blocks(None)))


def spoken(reader: CacheReader, teachers: Sequence[str]) -> Mapping[str, slice]:
    """FC1's columns by the teacher whose space they speak; all, where none was left out."""
    columns = spaces(reader.blocks(teachers))
    left_out = set(reader.teachers) - set(teachers)
    return {name: span for name, span in columns.items() if name != ALL_TEACHERS or not left_out}
