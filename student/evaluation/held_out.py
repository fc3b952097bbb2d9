"""What a student keeps of its teachers, on the cache's held-out rows. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from student.encoding import FloatArray, encode
from student.evaluation.retention import retention
from student.model import POOLED, Student
from student.stages import FULL_HEAD
from teacher_cache.reader import CacheReader

BOTH = "all teachers"


def evaluate(
    student: Student,
    untrained: Student,
    reader: CacheReader,
    teachers: Sequence[str],
    *,
    heads: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Retention of the named heads against every teacher and all of them together.

    `untrained` is the student's initialisation: its pooled state is the first line, to show what
    training was worth. Against one teacher of several, FC1 stands with that teacher's slice of
    it. The answer is plain data: `rows`, and for each vector, for each teacher, the figures.

    Raises:
        ValueError: the cache has fewer than three held-out rows.
    """
    rows = reader.held_out_rows
    texts = reader.texts(rows)
    targets = {BOTH: reader.vectors(rows, teachers).astype(np.float32)}
    for block in reader.blocks(teachers):
        targets[block.teacher] = reader.vectors(rows, [block.teacher]).astype(np.float32)
    if len(teachers) == 1:
        del targets[BOTH]
    vectors = {"init": encode(untrained, texts, (), advance=advance)[POOLED]}
    vectors |= encode(student, texts, heads, advance=advance)
    slices = _slices(reader, teachers)

    def compare(name: str, values: FloatArray, teacher: str) -> dict[str, Any]:
        full = name == FULL_HEAD
        part = values[:, slices[teacher]] if full and teacher in slices else values
        return asdict(retention(part, targets[teacher], same_space=full))

    figures = {
        name: {teacher: compare(name, values, teacher) for teacher in targets}
        for name, values in vectors.items()
    }
    widths = {name: values.shape[1] for name, values in vectors.items()}
    return {"rows": len(rows), "widths": widths, "retention": figures}


def _slices(reader: CacheReader, teachers: Sequence[str]) -> Mapping[str, slice]:
    slices = {}
    offset = 0
    for block in reader.blocks(teachers):
        slices[block.teacher] = slice(offset, offset + block.width)
        offset += block.width
    return slices
