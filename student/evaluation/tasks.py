"""Tasks from local files: found and read before anything is loaded, then measured, one by one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from student.evaluation import classification, retrieval, sts
from student.evaluation.task_spec import Embed, Kind, Score, Task, TaskError, TaskSpec
from student.stages import FULL_HEAD
from teacher_cache.format import is_folder_name

if TYPE_CHECKING:
    from student.encoding import FloatArray
    from student.evaluation.teacher_vectors import TeacherVectors

STUDENT = "student"
TEACHER = "teacher"
"""As a vector's name: the teacher's own."""

_LOADERS: Mapping[Kind, Callable[[TaskSpec, Path], Task]] = {
    "sts": sts.load,
    "retrieval": retrieval.load,
    "classification": classification.load,
}


class _TasksFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[TaskSpec, ...] = Field(min_length=1)


def read(path: Path) -> list[Task]:
    """The tasks of a TOML file, each under `[[tasks]]`; its paths are seen from its folder.

    Raises:
        TaskError: the file cannot be read, holds what is no task, or a task's files are at fault.
    """
    try:
        file = _TasksFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TaskError(f"{path} is no readable TOML file: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise TaskError(f"{path}: {where}: {problem['msg']}") from None
    return [load(spec, path.parent) for spec in file.tasks]


def named_by(kind: Kind, path: Path) -> Task:
    """A task of one file or folder, under its name, as it is without a tasks file.

    Raises:
        TaskError: its files are at fault, or its name can name no task.
    """
    # A link's own name: what it leads to may be called by a digest.
    name = (path if path.is_symlink() else path.resolve()).name.split(".")[0]
    if not is_folder_name(name):
        raise TaskError(f"{path}: its name can name no task; give it another in a tasks file")
    return load(TaskSpec(name=name, kind=kind, path=str(path)), Path())


def load(spec: TaskSpec, base: Path) -> Task:
    """Read a task's files; relative paths are seen from `base`.

    Raises:
        TaskError: they are missing, or a row is at fault.
    """
    return _LOADERS[spec.kind](spec, base)


def check_names(tasks: Sequence[Task]) -> None:
    """Refuse two tasks of one name.

    Raises:
        TaskError: there are such two.
    """
    names = [task.spec.name for task in tasks]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TaskError(f"two tasks are named {twice[0]!r}: give one another name in a tasks file")


def source_of(task: Task, role: str) -> str:
    """What a corpus calls the texts of a task that have this role."""
    return f"{task.spec.name}-{role}"


def texts_to_encode(tasks: Sequence[Task]) -> int:
    """How many texts `measure` asks of the student, those behind every paraphrase included."""
    return sum(
        len(texts) * (len(task.spec.instructions) if role == task.instructed else 1)
        for task in tasks
        for role, texts in task.texts().items()
    )


def measure(
    tasks: Sequence[Task], student: Embed, teachers: TeacherVectors | None
) -> list[dict[str, Any]]:
    """All scores of all tasks, as plain data: the student's, the teachers', and of both together.

    A row has `task`, `kind`, `measure`, `vector`, `of` (whose vectors they are: "student" or a
    teacher's name), `score`, `standard_error`, `instruction`, and `asymmetric`: whether the
    student's queries were searched among the documents of a teacher, `documents_of`. `share` is the
    score over that of this teacher, or of all of them, None where there is none above 0.
    """
    return [row for task in tasks for row in with_shares(_measured(task, student, teachers))]


def _measured(task: Task, student: Embed, teachers: TeacherVectors | None) -> list[dict[str, Any]]:
    instructions = task.spec.instructions
    asked = student if teachers is None else _remembering(student)
    rows = [_row(task, score, STUDENT) for score in task.measure(asked, student, instructions)]
    if teachers is None:
        return rows
    own = teachers.of(task)
    for score in task.measure(own, own, ("",)):
        told = {
            **_row(task, score, score.vector),
            "vector": TEACHER,
            "instruction": teachers.prompt(score.vector, source_of(task, task.instructed)),
        }
        rows.append(told)
    speaks = FULL_HEAD in {row["vector"] for row in rows}
    if task.spec.kind == "retrieval" and speaks:
        for score in task.measure(teachers.spoken(asked), own, instructions):
            told = {**_row(task, score, STUDENT), "asymmetric": True, "documents_of": score.vector}
            rows.append({**told, "vector": FULL_HEAD})
    return rows


def _remembering(embed: Embed) -> Embed:
    """The same vectors, but no list of texts is encoded twice."""
    found: dict[tuple[str, ...], Mapping[str, FloatArray]] = {}

    def remembered(texts: Sequence[str], role: str) -> Mapping[str, FloatArray]:
        key = tuple(texts)
        if key not in found:
            found[key] = embed(texts, role)
        return found[key]

    return remembered


def _row(task: Task, score: Score, of: str) -> dict[str, Any]:
    return {
        "task": task.spec.name,
        "kind": task.spec.kind,
        "measure": score.measure,
        "vector": score.vector,
        "of": of,
        "score": score.score,
        "standard_error": score.standard_error,
        "instruction": score.instruction,
        "asymmetric": False,
        "documents_of": None,
        "share": None,
    }


def with_shares(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one task, as `measure` describes them, with the `share` of the student's."""
    of_teachers = {
        (row["of"], row["measure"]): row["score"] for row in rows if row["of"] != STUDENT
    }
    # Teachers stand in the order of `asymmetric.spaces`: all of them together come first.
    together = next((of for of, _ in of_teachers), None)
    for row in rows:
        whole = of_teachers.get((row["documents_of"] or together, row["measure"]))
        if row["of"] == STUDENT and whole is not None and whole > 0:
            row["share"] = row["score"] / whole
    return list(rows)
