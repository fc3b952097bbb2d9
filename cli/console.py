"""What the commands share: one line for an expected failure, progress bars, tables."""

from __future__ import annotations

import errno
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

EXPECTED = (
    ("cli.recipe", "RecipeError"),
    ("data.corpus", "CorpusError"),
    ("data.images", "ImageError"),
    ("teacher_cache.format", "CacheError"),
    ("teacher_cache.models", "ModelError"),
    ("student.sweep.spec", "SweepError"),
    ("student.stages", "StageError"),
    ("student.spec", "StudentError"),
    ("student.evaluation.task_spec", "TaskError"),
)
"""Failures that are the input's and not the program's: module and name, imported by no one here."""

_OF_THE_MACHINE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
        errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
    }
)  # fmt: skip
"""Failures of the path and not of the program: not allowed, no room, a file in a folder's place."""

_INTERRUPTED = 130
"""The exit code that typer turns a KeyboardInterrupt into."""


def run(app: typer.Typer) -> NoReturn:
    """Run a command line. Expected failures print as one line and exit 2; bugs keep a traceback.

    Expected are the classes of `EXPECTED`, and a disk that is full or a path that cannot be used.
    """
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print_error("interrupted; what was finished stays, the same command goes on from there")
        raise
    except Exception as error:
        if not _is_expected(error):
            raise
        print_error(_in_words(error))
        sys.exit(2)
    sys.exit(0)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return str(error)


def print_error(message: str) -> None:
    """One line on standard error, whatever the message held."""
    line = " ".join(message.split())
    typer.echo(typer.style("error: ", fg=typer.colors.RED, bold=True) + line, err=True)


def note(message: str) -> None:
    """One line on standard error; of several processes only the first writes it."""
    if is_first_process():
        typer.echo(message, err=True)


def _is_expected(error: Exception) -> bool:
    # A class whose module was never imported cannot have been raised.
    kinds = [getattr(sys.modules.get(module), name, None) for module, name in EXPECTED]
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return True
    return isinstance(error, tuple(kind for kind in kinds if kind is not None))


@contextmanager
def phase(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar with count, rate and time left; the value is told each advance."""
    with bar(what, total) as update:
        yield lambda amount: update(amount, "")


@contextmanager
def bar(what: str, total: int | None, unit: str = "texts") -> Iterator[Callable[[int, str], None]]:
    """A progress bar whose value is told each advance and a note to show beside it.

    Where standard error is no terminal (a log file, a batch job), a line is printed now and then.
    Of several processes only the first shows anything.
    """
    if not is_first_process():
        yield lambda _amount, _note: None
        return
    if not sys.stderr.isatty():
        yield _Lines(what, total, unit).update
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("+"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=20) as progress:
        task = progress.add_task(what, total=total, note="", rate="")

        def update(amount: int, note: str) -> None:
            done = progress.tasks[0].completed + amount
            rate = done / max(time.monotonic() - began, 1e-9)
            progress.update(task, advance=amount, note=note, rate=f"{rate:,.1f} {unit}/s")

        yield update
        if total is None:
            done = progress.tasks[0].completed
            progress.update(task, total=done, completed=done)


def is_first_process() -> bool:
    """Whether this is the one process that speaks, by the variables of the usual launchers."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID"))


class _Lines:
    """Progress for a log: a line at the start, one every half minute, and one at the end."""

    EVERY = 30.0

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self.first = 0
        self.began = self.shown = self.started = time.monotonic()
        typer.echo(f"{what}: {'?' if total is None else f'{total:,}'} {unit} to do", err=True)

    def update(self, amount: int, note: str) -> None:
        now = time.monotonic()
        if not self.done:
            # What was waited for before the first tells nothing of the pace of the others.
            self.started, self.first = now, amount
        self.done += amount
        if self.done == self.total or now - self.shown >= self.EVERY:
            self.shown = now
            elapsed = max(now - self.began, 1e-9)
            share, left = "", ""
            if self.total:
                share = f"/{self.total:,} ({self.done / self.total:.0%})"
            if self.total and self.done > self.first:
                pace = (now - self.started) / (self.done - self.first)
                left = f", {pace * (self.total - self.done):,.0f} s left"
            typer.echo(
                f"{self.what}: {self.done:,}{share}, {self.done / elapsed:,.1f} {self.unit}/s, "
                f"{elapsed:,.0f} s{left}{', ' if note else ''}{note}",
                err=True,
            )


def default_device(local_rank: int = 0) -> str:
    """This process's GPU where there are any, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}"
    return "cpu"


def quiet_libraries() -> None:
    """Keep transformers' own bars and reports out of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: figures to the right, words to the left, nothing cut off.

    Cells are shown as they are, brackets and all.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        cells = [row[position] for row in rows]
        figures = position > 0 and all(cell[:1] in "-+±<≤" or cell[0].isdigit() for cell in cells)
        table.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)


def print_field(name: str, default: str, meaning: str) -> None:
    """A field of a recipe."""
    typer.echo(f"  {name} = {default}")
    typer.echo(textwrap.indent(textwrap.fill(meaning, 94), "      "))


def size(count: float) -> str:
    """Bytes, as people write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
