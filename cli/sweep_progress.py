"""The progress of a sweep: a line for each arm, and one for all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from student.sweep.plan import Plan
    from student.sweep.runner import Job

_ALL = "all arms"


class Board:
    """Counts the steps of a sweep, by arm: a shared stage run counts for every arm that uses it."""

    def __init__(self, plan: Plan, jobs: Sequence[Job]) -> None:
        self.steps = {job.key: job.planned.run.spec.steps for job in jobs}
        self.done = dict.fromkeys(self.steps, 0)
        self.arms = {
            arm.name: [key for key in dict.fromkeys(plan.chains(arm.name)) if key in self.steps]
            for arm in plan.arms
        }
        self.where = {
            job.key: f"seed {job.planned.run.seed}, stage {job.planned.run.stage}" for job in jobs
        }
        self.began = time.monotonic()

    def tell(self, key: str, done: int, note: str) -> None:
        """Take note of how far a stage run is."""
        self.done[key] = done

    def end(self, key: str, problem: str | None) -> None:
        """Take note that a stage run has ended, and of what went wrong."""
        self.done[key] = self.steps[key]

    def counts(self, keys: Sequence[str]) -> tuple[int, int]:
        """Steps done and steps in all of some stage runs."""
        return sum(self.done[key] for key in keys), sum(self.steps[key] for key in keys)


class _Lines(Board):
    """For a log: a line whenever a stage run ends, with the time that is left."""

    def end(self, key: str, problem: str | None) -> None:
        super().end(key, problem)
        done, total = self.counts(list(self.steps))
        left = (time.monotonic() - self.began) * (total - done) / max(done, 1)
        how = "done" if problem is None else f"failed: {problem}"
        arms = [name for name, keys in self.arms.items() if key in keys]
        typer.echo(
            f"{', '.join(arms)} ({self.where[key]}): {how}; {done:,}/{total:,} steps of the sweep, "
            f"{left:,.0f} s left",
            err=True,
        )


class _Bars(Board):
    """For a terminal: a bar for each arm."""

    def __init__(self, plan: Plan, jobs: Sequence[Job], progress: Progress) -> None:
        super().__init__(plan, jobs)
        self.progress = progress
        self.rows: Mapping[str, tuple[TaskID, list[str]]] = {
            name: (progress.add_task(name, total=self.counts(keys)[1], note=""), keys)
            for name, keys in {**self.arms, _ALL: list(self.steps)}.items()
        }

    def tell(self, key: str, done: int, note: str) -> None:
        super().tell(key, done, note)
        self._show(key, f"{self.where[key]} {note}")

    def end(self, key: str, problem: str | None) -> None:
        super().end(key, problem)
        self._show(key, "" if problem is None else f"{self.where[key]} failed")

    def _show(self, key: str, note: str) -> None:
        for row, keys in self.rows.values():
            if key in keys:
                self.progress.update(row, completed=self.counts(keys)[0], note=note)


@contextmanager
def board(plan: Plan, jobs: Sequence[Job]) -> Iterator[Board]:
    """Show how far each arm is: bars on a terminal, else a line for each stage run."""
    if not sys.stderr.isatty():
        yield _Lines(plan, jobs)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as progress:
        yield _Bars(plan, jobs, progress)
