"""The evaluation of one stage: all that was asked for, measured, written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student.durable import replace_text
from student.evaluation import held_out, instructions
from student.evaluation.student_vectors import vectors_of
from student.evaluation.task_spec import Embed, Task
from student.evaluation.tasks import measure, texts_to_encode
from student.evaluation.teacher_vectors import TeacherVectors
from student.model import Student, create, load
from student.run import EVALUATION_FILE
from student.stages import LEAST_TEXTS
from teacher_cache.reader import CacheReader

Phase = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: what is done, how many texts; told each advance."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured on a stage: its `run.json`, its cache, which heads, which tasks.

    `teachers` have vectors of the tasks' texts. `mteb` are tasks of that package, measured for
    `mteb_heads`.
    """

    folder: Path
    record: dict[str, Any]
    reader: CacheReader
    heads: Sequence[str]
    tasks: Sequence[Task] = ()
    teachers: TeacherVectors | None = None
    mteb: Sequence[Any] = ()
    mteb_heads: Sequence[str] = ()


def evaluate(asked: Asked, *, device: str, phase: Phase) -> dict[str, Any]:
    """Measure all of it; the same as plain data is in `evaluation.json`, whole or not at all.

    Parts that were not asked for, or cannot be measured, are not in the answer: without held-out
    rows there are no `rows`, `widths`, `retention` and `asymmetric`, without tasks no `tasks` and
    `instructions`. In the file what an earlier evaluation of the stage measured beside it stays.
    Where the model that the run began with is gone, nothing is told of `init`.
    """
    record, reader = asked.record, asked.reader
    student = load(asked.folder / "model").to(device)
    untrained = _untrained(student, record, device)
    each = 1 if untrained is None else 2

    def embed(advance: Callable[[int], None]) -> Embed:
        return vectors_of(student, untrained, asked.heads, advance)

    result: dict[str, Any] = {"stage": record["number"], "cache": record["cache"]}
    rows = reader.held_out_rows
    if len(rows) >= LEAST_TEXTS:
        with phase("encoding held-out texts", each * len(rows)) as advance:
            vectors = embed(advance)(reader.texts(rows), "")
        compared = len(vectors) + len(held_out.measured_against(reader))
        with phase("comparing rows", len(rows) * compared) as advance:
            result |= held_out.measure(vectors, reader, record["teachers"], advance)
    if asked.tasks:
        with phase("encoding the tasks' texts", each * texts_to_encode(asked.tasks)) as advance:
            result["tasks"] = measure(asked.tasks, embed(advance), asked.teachers)
        result["instructions"] = instructions.spread(result["tasks"])
    if asked.mteb:
        from student.evaluation import mteb_model

        with phase("encoding MTEB's texts", None) as advance:
            found = mteb_model.measure(asked.mteb, student, asked.mteb_heads, advance)
        result["tasks"] = [*result.get("tasks", []), *found]
    save(asked.folder, result)
    return result


def save(folder: Path, result: dict[str, Any]) -> None:
    """Write a stage's `evaluation.json`; vectors and tasks that only an earlier one measured stay.

    What was measured on another cache does not.
    """
    path = folder / EVALUATION_FILE
    replace_text(path, json.dumps(_with_earlier(path, result), indent=1) + "\n")


def _with_earlier(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("cache") != result["cache"]:
        return result
    whole = {**earlier, **result}
    for part in ("widths", "retention", "asymmetric"):
        if part in earlier and part in result:
            kept = {name: of for name, of in earlier[part].items() if name not in result[part]}
            whole[part] = {**result[part], **kept}
    measured = {row["task"] for row in result.get("tasks", [])}
    for part in ("tasks", "instructions"):
        if part in whole:
            others = [row for row in earlier.get(part, []) if row["task"] not in measured]
            whole[part] = [*others, *result.get(part, [])]
    return whole


def _untrained(student: Student, record: dict[str, Any], device: str) -> Student | None:
    """The student as the run found it, where its model still lies where it was."""
    folder, width = Path(record["init_path"]), student.head_widths["fc1"]
    if not folder.is_dir():
        return None
    return create(student.spec, folder, width, record["seed"]).to(device)
