"""Reads the folders of runs and sweeps. A part that is not there yet is left out, not refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from student.metrics import METRICS_FILE
from student.report.palette import SERIES
from student.report.records import Curve, Evaluation, Facts, Recall, Report, Run, Stage, Sweep
from student.run import EVALUATION_FILE, RECALL_FILE, RUN_FILE, read_record, reader_of
from student.spec import StudentError
from student.stages import LEAST_TEXTS, first_problem
from student.sweep.results import RESULTS_FILE
from teacher_cache.reader import CacheReader

MOST_RUNS = len(SERIES)
"""As many as there are colours."""

Kind = TypeVar("Kind", bound=Facts)


def collect(folders: Sequence[Path]) -> Report:
    """Read runs and sweeps, in the order given.

    Raises:
        StudentError: there are more than `MOST_RUNS`, a folder stands twice, is not there or is
            neither, a run has no finished stage, or a file is broken.
    """
    named = [folder for folder in folders if not is_sweep(folder)]
    if len(named) > MOST_RUNS:
        raise StudentError(
            f"{len(named)} runs cannot be told apart on one page: give at most {MOST_RUNS}, or a "
            "sweep's folder"
        )
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise StudentError(f"{folder} stands twice among the runs; give each once")
        if not place.is_dir():
            raise StudentError(f"there is no folder {folder}; expected a run or a sweep")
    runs = [read_run(folder) for folder in named]
    sweeps = [read_sweep(folder) for folder in folders if is_sweep(folder)]
    return Report(runs=_told_apart(runs), sweeps=sweeps)


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the results of a sweep."""
    return (folder / RESULTS_FILE).is_file()


def read_run(folder: Path) -> Run:
    """A run with the stages that it has begun.

    Raises:
        StudentError: it is no run, is one stage of one, has no finished stage, or is broken.
    """
    if (folder / RUN_FILE).is_file():
        raise StudentError(
            f"{folder} is one stage of a run; a report is of runs: "
            f"jasper-student report {folder.parent}"
        )
    begun = [path for path in folder.glob("stage-*") if path.name[6:].isdecimal()]
    stages = [read_stage(path) for path in sorted(begun, key=lambda path: int(path.name[6:]))]
    if not any(stage.finished for stage in stages):
        what = "no finished stage" if stages else f"neither a run's stages nor {RESULTS_FILE}"
        raise StudentError(
            f"{folder} holds {what}; train one with: jasper-train --stage 1 --cache CACHE "
            f"--out {folder}"
        )
    # A link's own name: a sweep's arm leads to a folder that is called by a digest.
    name = folder.name if folder.is_symlink() else folder.resolve().name
    return Run(name=name, path=folder, stages=[s for s in stages if s.finished or s.curves])


def cache_to_look_at(run: Run, cache: Path | None) -> CacheReader:
    """The cache that a run was trained from, or the same one where `cache` says it lies now.

    Raises:
        CacheError: it is not whole.
        StudentError: it is not there, another one, or has no held-out rows to look at.
    """
    reader = reader_of(run.path, run.last.record, cache)
    if len(reader.held_out_rows) < LEAST_TEXTS:
        raise StudentError(f"{reader.path} has no held-out rows: set corpus.held_out in its recipe")
    return reader


def read_stage(folder: Path) -> Stage:
    """One stage: what it was, how it went, and what was measured of it.

    Raises:
        StudentError: one of its files is broken.
    """
    finished = (folder / "model").is_dir() and (folder / RUN_FILE).is_file()
    again = f"jasper-student evaluate {folder}"
    return Stage(
        number=int(folder.name[6:]),
        folder=folder,
        finished=finished,
        record=read_record(folder) if finished else {},
        curves=read_curves(folder / METRICS_FILE),
        evaluation=_read(folder / EVALUATION_FILE, Evaluation, again),
        recall=_read(folder / RECALL_FILE, Recall, f"jasper-student recall {folder.parent}"),
    )


def read_curves(path: Path) -> dict[str, Curve]:
    """The figures of a stage's log over its steps; what is no finite number is left out."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            figures = json.loads(line)
            step = int(figures.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue  # torn: the stage was killed while it wrote this line
        for name, value in figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return {name: Curve(steps=steps, values=values) for name, (steps, values) in found.items()}


def read_sweep(folder: Path) -> Sweep:
    """A sweep's results.

    Raises:
        StudentError: the file is broken or names no arm.
    """
    sweep = _read(folder / RESULTS_FILE, Sweep, "jasper-train sweep")
    if sweep is None or not sweep.arms:
        raise StudentError(f"{folder / RESULTS_FILE} holds no arms; run jasper-train sweep again")
    return sweep.model_copy(update={"path": folder})


def _read(path: Path, kind: type[Kind], again: str) -> Kind | None:
    """A JSON file as what it should be; None where there is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(f"{path} cannot be read ({error}); make it anew with: {again}") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise StudentError(
            f"{path} is not what is expected there: {first_problem(error)[:300]}; "
            f"make it anew with: {again}"
        ) from None


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name go by their paths."""
    names = [run.name for run in runs]
    return [
        run.model_copy(update={"name": str(run.path)}) if names.count(run.name) > 1 else run
        for run in runs
    ]
