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

from student.durable import replace_text
from student.spec import StudentError, StudentSpec
from student.stages import MEMORY_FIELDS, StageSpec
from teacher_cache.reader import CacheReader

RUN_FILE = "run.json"
EVALUATION_FILE = "evaluation.json"
"""In a stage's folder: what `jasper-student evaluate` found of it."""
RECALL_FILE = "recall.json"
"""In a stage's folder: what `jasper-student recall` found."""
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
        """What decides the outcome, as plain data: equal facts give equal students."""
        return {
            "cache": self.identity,
            "teachers": list(self.teachers),
            "student": self.student.model_dump(mode="json"),
            "stage": self.spec.outcome(),
            "seed": self.seed,
            "init_from": self.init_from,
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
        StudentError: there is none, or it was trained from another cache or other teachers.
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
    return folder / "model"


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


def finished(run: StageRun) -> bool:
    """Whether this very stage is done already.

    Raises:
        StudentError: the folder holds the stage, done under other settings.
    """
    if not run.model.is_dir():
        return False
    record, facts = read_record(run.folder), run.facts()
    for name, asked in facts.items():
        if record.get(name) != asked:
            raise StudentError(
                f"{run.folder} was trained with other settings: {_change(name, record, facts)}; "
                "give another --out, or --restart to train the stage anew"
            )
    return True


def _change(name: str, record: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    old, new = record.get(name), facts[name]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        return _change(inner, old, new) if inner in new else f"{name}.{inner}"
    return f"{name} was {old!r}, is now {new!r}"


def write_record(
    run: StageRun, reader: CacheReader, init: Path, figures: Mapping[str, Any]
) -> None:
    """Write `run.json`: the facts, the figures of this training, and what it ran on."""
    blocks = reader.blocks(run.teachers)
    start = start_of(run)
    before = [] if start is None else read_record(start.parent)["trained_heads"]
    record = {
        **run.facts(),
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


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("jasper-distill", "torch", "transformers", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
