"""Running a sweep's stages, each once, one after the other or wherever an engine puts them."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from student.evaluation.held_out import evaluate
from student.evaluation.stage import save
from student.model import create, load
from student.plan import check_model
from student.run import START, read_record
from student.spec import StudentError
from student.stages import FULL_HEAD, StageError
from student.step import Metrics
from student.sweep.plan import Plan, PlannedStage
from student.sweep.results import evaluation
from student.sweep.spec import SweepError
from student.sweep.waiting import Waiting
from student.train import Settings, train
from teacher_cache.format import CacheError
from teacher_cache.models import body_fingerprint, locate
from teacher_cache.reader import CacheReader

Tell = Callable[[str, int, str], None]
"""Told, of a stage run by its key, how many steps are done, and a note."""


@dataclass(frozen=True, slots=True)
class Job:
    """One stage run as a process needs it: it can be sent to another machine.

    `measured` are the vectors to measure when the stage is done; none where no arm ends there.
    """

    planned: PlannedStage
    cache: Path
    init: Path
    measured: tuple[str, ...]
    settings: Settings

    @property
    def key(self) -> str:
        """The stage run's."""
        return self.planned.key


Engine = Callable[[Sequence[Job], Tell], Iterator[tuple[str, str | None]]]
"""Does jobs, a job after the one it starts from, and gives the key of each that ended with what
went wrong, None where nothing did. What starts from a failed one is given as failed, too."""


def jobs_of(plan: Plan, reader: CacheReader, base: Path, settings: Settings) -> list[Job]:
    """What is left to do of a plan, each job after the one it starts from.

    A stage run that is done and measured is left out, and what only led to it. `base` is the
    folder that a student's relative `init` is seen from. Every stage is held against its model,
    without weights, before the first is trained.

    Raises:
        SweepError: a stage does not fit its student's model, or what was trained before began from
            another model than lies there now.
        ModelError: the model that a student starts from cannot be found.
    """
    needed: set[str] = set()
    for key in plan.stages:
        if (measured := plan.measured(key)) and evaluation(plan.stages[key], measured) is None:
            needed |= set(_missing(plan, key))
    jobs: list[Job] = []
    inits: dict[tuple[str, str | None], Path] = {}
    for key in (key for key in plan.stages if key in needed):
        planned = plan.stages[key]
        student = planned.run.student
        name = student.init, student.revision
        if name not in inits:
            inits[name], _ = locate(*name, what="the student's init", base=base)
            _check_unchanged(plan, *name, inits[name])
        init = inits[name]
        if not planned.run.model.is_dir():
            try:
                check_model(planned.run, reader, init, trained_before=planned.trained_before)
            except (StageError, StudentError) as error:
                arms = ", ".join(map(repr, plan.arms_of(key)))
                raise SweepError(f"arm {arms}: stage {planned.run.stage}: {error}") from None
        jobs.append(Job(planned, reader.path.resolve(), init, plan.measured(key), settings))
    return jobs


def _check_unchanged(plan: Plan, init: str, revision: str | None, folder: Path) -> None:
    """Arms that were trained before began from the model that the next ones will begin from."""
    now: str | None = None
    for key, planned in plan.stages.items():
        student = planned.run.student
        if planned.after or (student.init, student.revision) != (init, revision):
            continue
        if not planned.run.model.is_dir():
            continue
        now = now or body_fingerprint(folder)
        if read_record(planned.run.folder).get(START, now) != now:
            arms = ", ".join(map(repr, plan.arms_of(key)))
            raise SweepError(
                f"arm {arms} began from another {init} than lies in {folder} now: what follows "
                "could not be compared with it; put the model back, or give another --out"
            )


def _missing(plan: Plan, key: str) -> list[str]:
    """A stage run and those before it, back to one whose model is there; at least itself."""
    missing: list[str] = []
    for each in reversed(plan.chain(key)):
        if plan.stages[each].run.model.is_dir():
            break
        missing.append(each)
    return missing or [key]


def here(jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[str, str | None]]:
    """One job after the other in this process: an `Engine`."""
    waiting = Waiting(jobs)
    while (job := waiting.next()) is not None:
        problem = attempt(job, tell)
        gc.collect()  # a student's cycles would hold its GPU memory while the next one loads
        yield from waiting.ended(job.key, problem)


def attempt(job: Job, tell: Tell) -> str | None:
    """Do a job; what went wrong, where that is the arm's and not the program's."""
    try:
        perform(job, tell)
    except (StageError, StudentError, CacheError) as error:
        return str(error)
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}; micro_batch keeps less in memory"
    return None


def perform(job: Job, tell: Tell) -> None:
    """Train a stage run, or finish one that was interrupted, and measure it if asked."""
    run = job.planned.run
    _link_start(job.planned)
    reader = CacheReader(job.cache)

    def on_step(done: int, metrics: Metrics) -> None:
        tell(job.key, done, f"loss {metrics['loss']:.4f}" if metrics else "")

    if run.model.is_dir():
        # Not through `train`: where all was moved, the record still names the start's old place.
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a run that was killed at its end
    else:
        train(run, reader, job.init, settings=job.settings, on_step=on_step)
    if job.measured:
        tell(job.key, run.spec.steps, "measuring")
        _measure(job, reader)


def _link_start(planned: PlannedStage) -> None:
    """Let the stages before a stage run lie beside it, as in a run that was trained by hand."""
    out = planned.run.out
    out.mkdir(parents=True, exist_ok=True)
    if planned.after is not None:
        for stage in sorted((out.parent / planned.after).glob("stage-*")):
            _link(out / stage.name, Path("..") / planned.after / stage.name)


def link_arms(plan: Plan) -> None:
    """Name the run of each arm and seed: `arms/ARM/seed-N`, in place of an earlier plan's names."""
    folder = plan.out / "arms"
    for old in folder.glob("*/seed-*"):
        if old.is_symlink():
            old.unlink()
            if not any(old.parent.iterdir()):
                old.parent.rmdir()
    for arm in plan.arms:
        for seed, key in plan.ends[arm.name].items():
            place = folder / arm.folder / f"seed-{seed}"
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(place, Path("..") / ".." / "runs" / key)


def _link(place: Path, target: Path) -> None:
    if not place.is_symlink():
        place.symlink_to(target)


def _measure(job: Job, reader: CacheReader) -> None:
    run = job.planned.run
    student = load(run.model)
    untrained = create(student.spec, job.init, student.head_widths[FULL_HEAD], run.seed)
    gpu = torch.cuda.is_available() and not job.settings.cpu
    for model in (student, untrained):
        model.to("cuda" if gpu else "cpu")
    figures = evaluate(student, untrained, reader, run.teachers, heads=job.measured)
    save(run.folder, {"stage": run.stage, "cache": reader.identity, **figures})
