"""A run's folder: one sub-folder per stage, what each was trained from, and where it starts.

runs/a/stage-1/run.json          what ran: stage, student, cache, seed, versions, figures
               metrics.jsonl     one line per logged step; tensorboard/ holds the same
               checkpoints/      of an unfinished stage, to resume from
               model/            the student after the stage; it exists when the stage is done
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from student.durable import replace_text
from student.spec import StudentError, StudentSpec
from student.stages import MEMORY_FIELDS, StageSpec
from teacher_cache.models import body_fingerprint
from teacher_cache.reader import CacheReader

RUN_FILE = "run.json"
EVALUATION_FILE = "evaluation.json"
"""In a stage's folder: what `jasper-student evaluate` found of it."""
RECALL_FILE = "recall.json"
"""In a stage's folder: what `jasper-student recall` found."""
START = "start"
"""Among a stage's facts: the digest of what it started from."""
FRESH = "fresh"
"""As `init_from`: begin with the untrained student, whatever the stage."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of one run, as it is asked for. `identity` is the cache's."""

    out: Path
    stage: int
    spec: StageSpec
    student: StudentSpec
    identity: str
    teachers: tuple[str, ...]
    seed: int
    init_from: str | None = None
    images: str | None = None
    """The identity of the pairs, where the stage reads images."""

    @property
    def folder(self) -> Path:
        """Where everything of this stage goes."""
        return stage_folder(self.out, self.stage)

    @property
    def model(self) -> Path:
        """The student after the stage."""
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        """Where an unfinished stage resumes from."""
        return self.folder / "checkpoints"

    def facts(self) -> dict[str, Any]:
        """What was asked for that decides the outcome, as plain data; see `facts_of`."""
        start = self.init_from
        if start is not None and start != FRESH:
            start = str(Path(start).resolve())  # whoever reads it may work in another folder
        return {
            "cache": self.identity,
            "teachers": list(self.teachers),
            "student": self.student.model_dump(mode="json"),
            "stage": self.spec.outcome(),
            "seed": self.seed,
            "init_from": start,
            **({} if self.images is None else {"images": self.images}),
        }


def stage_folder(out: Path, stage: int) -> Path:
    """The folder of one stage of a run."""
    return out / f"stage-{stage}"


def last_stage(path: Path) -> Path:
    """The folder of a finished stage: `path` itself, or the last one of the run it is.

    Raises:
        StudentError: there is none.
    """
    if (path / RUN_FILE).is_file():
        return path
    done = [
        folder
        for folder in path.glob("stage-*")
        if folder.name.removeprefix("stage-").isdecimal() and (folder / "model").is_dir()
    ]
    if not done:
        raise StudentError(
            f"{path} holds no finished stage: expected the --out of jasper-train, or stage-N in it "
            "after its training has ended"
        )
    return max(done, key=lambda folder: int(folder.name.removeprefix("stage-")))


def start_of(run: StageRun) -> Path | None:
    """The saved student that a stage starts from; None for the untrained one.

    That is the stage before it, or what `init_from` names.

    Raises:
        StudentError: there is none, it is the stage itself, or it was trained from another cache,
            other teachers or as another student.
    """
    if run.init_from == FRESH or (run.init_from is None and run.stage == 1):
        return None
    if run.init_from is None:
        folder = stage_folder(run.out, run.stage - 1)
        if not (folder / "model").is_dir():
            raise StudentError(
                f"stage {run.stage} starts from stage {run.stage - 1}, which is not in {run.out}; "
                f"train it first, or give --init-from RUN/stage-N or --init-from {FRESH}"
            )
    else:
        folder = Path(run.init_from)
        if folder.resolve() == run.folder.resolve():
            raise StudentError(
                f"--init-from {folder} is the stage that is to be trained, which cannot start from "
                "itself; give the stage before it, or another --out"
            )
        if not (folder / "model").is_dir():
            raise StudentError(
                f"--init-from {folder} holds no trained stage: expected RUN/stage-N with a model, "
                f"or {FRESH}"
            )
    record = read_record(folder)
    for name, asked in (("cache", run.identity), ("teachers", list(run.teachers))):
        if record[name] != asked:
            raise StudentError(
                f"{folder} was trained from another {name} ({record[name]}) than this run's "
                f"({asked}); a run stays with one cache and its teachers"
            )
    students = (StudentSpec.model_validate(record["student"]).text_side, run.student.text_side)
    if students[0] != students[1]:
        was, is_now = ({"student": each.model_dump(mode="json")} for each in students)
        raise StudentError(
            f"{folder} was trained as another student: {_change('student', was, is_now)}; give the "
            "recipe that it was trained with as --recipe"
        )
    return folder / "model"


def facts_of(run: StageRun, init: Path) -> dict[str, Any]:
    """What decides a stage's outcome, as plain data: equal facts give equal students.

    The start's own facts are among them by their digest, and so its start's: of the first, which
    is untrained, the digest of the files in `init`, whose weights are read for it.

    Raises:
        StudentError: as `start_of`.
    """
    start = start_of(run)
    return {**run.facts(), START: body_fingerprint(init) if start is None else _digest(start)}


def _digest(start: Path) -> str:
    record = read_record(start.parent)
    names = ("cache", "teachers", "student", "stage", "seed", "images")
    # Where a start lies is not what it is; of records without its digest it is all that there is.
    facts = [*(record.get(name) for name in names), record.get(START, record.get("init_from"))]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def cache_of(out: Path, stage: int, init_from: str | None) -> Path:
    """The cache that the stage before, or the one that `init_from` names, was trained from.

    Raises:
        StudentError: there is no such stage, or its cache is not where it was.
    """
    if init_from == FRESH or (init_from is None and stage == 1):
        raise StudentError("nothing comes before this stage: give the cache as --cache")
    before = stage_folder(out, stage - 1) if init_from is None else Path(init_from)
    if not (before / RUN_FILE).is_file():
        raise StudentError(
            f"no --cache, and {before} is no stage whose cache could be taken; give the cache"
        )
    cache = Path(str(read_record(before).get("cache_path")))
    if not cache.exists():
        raise StudentError(_moved(before, cache))
    return cache


def reader_of(folder: Path, record: Mapping[str, Any], cache: Path | None = None) -> CacheReader:
    """The cache that a stage was trained from, or the same one where `cache` says it lies now.

    Raises:
        CacheError: it is not whole.
        StudentError: it is not there any more, or another one.
    """
    before = Path(str(record.get("cache_path")))
    if cache is None and not before.exists():
        raise StudentError(_moved(folder, before))
    reader = CacheReader(cache or before)
    if reader.identity != record.get("cache"):
        raise StudentError(
            f"{folder} was trained from the cache {record.get('cache')}, {reader.path} is "
            f"{reader.identity}; give the one it was trained from as --cache"
        )
    return reader


def _moved(folder: Path, cache: Path) -> str:
    return (
        f"the cache that {folder} was trained from is not in {cache} any more; give it as --cache"
    )


def finished(run: StageRun, facts: Mapping[str, Any]) -> bool:
    """Whether this very stage, with these facts, is done already.

    Raises:
        StudentError: the folder holds the stage, done under other settings or from another start.
    """
    if not run.model.is_dir():
        return False
    record = read_record(run.folder)
    if (name := differing(record, facts)) is not None:
        other = f"with other settings: {_change(name, record, facts)}"
        if name == START:
            other = f"from another student than what {_start_in_words(run)} is now"
        raise StudentError(
            f"{run.folder} was trained {other}; give another --out, or --restart to train the "
            "stage anew"
        )
    return True


def differing(record: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """The first of the facts that a record has otherwise.

    What a stage started from is told by its digest, wherever it lies; records of older versions
    have none, and tell it by `init_from`.
    """
    unknown = "init_from" if START in record else START
    names = (name for name in facts if name != unknown)
    return next((name for name in names if record.get(name) != facts[name]), None)


def _start_in_words(run: StageRun) -> str:
    start = start_of(run)
    return run.student.init if start is None else str(start.parent)


def _change(name: str, record: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    old, new = record.get(name), facts[name]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _change(inner, old, new) if inner in new else f"{name}.{inner}"
    return f"{name} was {old!r}, is now {new!r}"


def write_record(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    facts: Mapping[str, Any],
    figures: Mapping[str, Any],
) -> None:
    """Write `run.json`: the facts, the figures of this training, and what it ran on."""
    blocks = reader.blocks(run.teachers)
    start = start_of(run)
    before = [] if start is None else read_record(start.parent)["trained_heads"]
    record = {
        **facts,
        "number": run.stage,
        "memory": run.spec.model_dump(include=set(MEMORY_FIELDS)),
        "trained_heads": list(dict.fromkeys([*before, *run.spec.heads, *run.spec.closed_form])),
        "cache_path": str(reader.path.resolve()),
        "init_path": str(init.resolve()),
        "blocks": [block.to_json() for block in blocks],
        "figures": figures,
        "versions": versions(),
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    replace_text(run.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a stage.

    Raises:
        StudentError: it is missing or broken.
    """
    path = folder / RUN_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudentError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("trained_heads"), list):
        raise StudentError(
            f"{path} is no record of a stage; take it from a copy, or train the stage again with "
            "--restart"
        )
    return record


def keeps_text_side(record: Mapping[str, Any]) -> bool:
    """Whether a stage, by its record, left the text side as it was: what was measured of the stage
    before it then still holds."""
    return set(record["stage"]["trains"]) <= {"vision", "pooler"}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("jasper-distill", "torch", "transformers", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
