"""Where a student is from, as parts of its card: teachers, stages, texts, what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from student.evaluation.meanings import MEANINGS
from student.export.past import Past
from student.model import Student
from student.stage_fields import TABLE_COLUMNS, row
from student.stages import StageSpec
from teacher_cache.format import Manifest

Block = Mapping[str, Any]


def origin(student: Student, record: Mapping[str, Any], past: Past) -> list[str]:
    """The parts of a card that tell it, in Markdown."""
    blocks = record["blocks"]
    vision = student.spec.vision
    begun = _without_place(student.spec.init)
    seen = f", its image side from `{_without_place(vision.init or begun)}`" if vision else ""
    teachers = [
        (b["teacher"], _without_place(b["repository"]), str(b["width"]), b["licence"])
        for b in blocks
    ]
    return [
        "## Where it is from",
        f"It started from `{begun}`{seen} and was distilled, in stages up to "
        f"{record['number']},\nfrom a cache (`{record['cache']}`) of the vectors of:",
        table(("teacher", "repository", "width", "licence"), teachers),
        _licences(blocks),
        *([_recipe(past.stages)] if past.stages else []),
        _texts(past),
        _kept(past.evaluation or {}),
        *_tasks(past.evaluation or {}),
    ]


def non_commercial(block: Block) -> bool:
    """Whether a teacher's licence is one that forbids commercial use."""
    return "-nc" in block["licence"].lower()


def sources(past: Past) -> list[Mapping[str, Any]]:
    """The sources of the texts, as the cache's manifest has them; those of all merged caches."""
    corpus = {} if past.cache is None else past.cache.corpus
    return [source for part in corpus.get("merged", [corpus]) for source in part.get("sources", ())]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line]
             for line in (columns, *rows))  # fmt: skip
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _licences(blocks: Sequence[Block]) -> str:
    bound = [f"`{b['teacher']}` ({b['licence']})" for b in blocks if non_commercial(b)]
    only = f" For non-commercial use alone: {', '.join(bound)}." if bound else ""
    return (
        "The licences of the teachers, of the initialisation and of the texts may bind what this "
        f"model is used\nfor; who publishes it settles that.{only}"
    )


def _recipe(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [row(stage["number"], StageSpec.model_validate(stage["stage"])) for stage in stages]
    return f"### Recipe\n\n{table(TABLE_COLUMNS, rows)}\n\nSeed {stages[-1]['seed']}."


def _texts(past: Past) -> str:
    cache = past.cache
    if cache is None:
        return "### Texts\n\nThose of the cache; it was not found when this card was written."
    rows = [(source["name"], _from(source), _kept_of(cache, source)) for source in sources(past)]
    trained = cache.rows - cache.held_out_rows
    return (
        f"### Texts\n\n{trained:,}, and {cache.held_out_rows:,} held out, from:\n\n"
        f"{table(('source', 'from', 'texts'), rows)}"
    )


def _without_place(model: str) -> str:
    """A model's name; of a folder its own, since where it lay on a disk is nobody's business."""
    return PurePath(model).name if model.startswith(("/", "~", "./", "../")) else model


def _from(source: Mapping[str, Any]) -> str:
    if pairs := source.get("pairs"):
        return f"captions of {_from(pairs)}"
    found = source.get("dataset") or source.get("generator")
    return str(found or PurePath(source["path"]).name)


def _kept_of(cache: Manifest, source: Mapping[str, Any]) -> str:
    count = cache.counts.get(source["name"], {}).get("kept")
    return "-" if count is None else f"{count:,}"


def _kept(evaluation: Mapping[str, Any]) -> str:
    """What the student kept of its teachers, from its `evaluation.json`, if it was measured."""
    retention = evaluation.get("retention")
    if not retention:
        return (
            "### What it keeps\n\nNot measured. `jasper-student evaluate RUN` measures it; this "
            "card tells it when the student is exported after that."
        )
    widths = evaluation.get("widths", {})
    figures = [found for teachers in retention.values() for found in teachers.values()]
    measures = list(dict.fromkeys(name for found in figures for name in found))
    rows = [
        (vector, str(widths.get(vector, "-")), teacher, *(_figure(found, m) for m in measures))
        for vector, teachers in retention.items()
        for teacher, found in teachers.items()
    ]
    meanings = [f"- {name}: {MEANINGS[name]}" for name in measures if name in MEANINGS]
    return "\n\n".join([
        f"### What it keeps\n\nOf its teachers, on {evaluation.get('rows', 'the')} held-out texts. "
        "`init` is the untrained\nstudent's pooled state.",
        *(["\n".join(meanings)] if meanings else []),
        table(("vector", "width", "teacher", *measures), rows),
    ])  # fmt: skip


def _tasks(evaluation: Mapping[str, Any]) -> list[str]:
    columns = ("task", "measure", "of", "vector")
    rows = [
        (*(str(task.get(column, "-")) for column in columns), _figure(task, "score"))
        for task in evaluation.get("tasks", ())
        if not task.get("asymmetric")
    ]
    return [f"### Tasks\n\n{table((*columns, 'score'), rows)}"] if rows else []


def _figure(found: Mapping[str, Any], measure: str) -> str:
    value = found.get(measure)
    return "-" if value is None else f"{value:.3f}"
