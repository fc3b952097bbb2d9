"""The seconds of a training, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yardstick.budget import Cost

WARM = 3
"""First steps that do not count for what a step costs: memory is taken, threads start."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """CPU time of this process, all its threads, and time by the clock.

    What others do on the machine costs the second much more than the first.
    """

    cpu: float = 0.0
    wall: float = 0.0

    @classmethod
    def now(cls) -> Seconds:
        """The time, since some moment."""
        return cls(time.process_time(), time.perf_counter())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Seconds) -> Seconds:
        return self + other * -1

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.cpu * factor, self.wall * factor)


class Stopwatch:
    """Told of what precedes the steps and of every step, it knows what they took.

    With a `file` it knows it of earlier processes too, which were killed: a step that was taken
    twice, for want of a checkpoint after it, counts once.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._mark: Seconds | None = None
        self._took: dict[int, Seconds] = {}
        """By step, from 1 on; under 0 what came before."""
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                step, cpu, wall = line.split()
                self._took[int(step)] = Seconds(float(cpu), float(wall))

    @contextmanager
    def solving(self, _what: str, _total: int) -> Iterator[Callable[[int], None]]:
        """A phase of the trainer: heads are solved."""
        began = Seconds.now()
        yield lambda _: None
        self._note(0, Seconds.now() - began)

    def step(self, done: int, _metrics: object = None) -> None:
        """So many steps are done: told before the first and after each."""
        now = Seconds.now()
        if self._mark is not None:
            self._note(done, now - self._mark)
        self._mark = now

    @property
    def taken(self) -> Seconds:
        """What all took."""
        return sum(self._took.values(), Seconds())

    @property
    def costs(self) -> dict[str, Cost]:
        """What a stage costs by either clock, a step by those after the first few."""
        before = self._took.get(0, Seconds())
        steps = [took for step, took in sorted(self._took.items()) if step > 0]
        steps = steps[min(WARM, len(steps) - 1) :]
        step = sum(steps, Seconds()) * (1 / len(steps))
        return {"cpu": Cost(before.cpu, step.cpu), "wall": Cost(before.wall, step.wall)}

    def _note(self, step: int, took: Seconds) -> None:
        self._took[step] = took
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{step} {took.cpu} {took.wall}\n")
