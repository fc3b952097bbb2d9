"""The seconds of a training, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    """Told of what precedes the steps and of every step, it knows what they took."""

    def __init__(self) -> None:
        self._before = Seconds()
        self._first = 0
        self._marks: list[Seconds] = []

    @contextmanager
    def solving(self, _what: str, _total: int) -> Iterator[Callable[[int], None]]:
        """A phase of the trainer: heads are solved."""
        began = Seconds.now()
        yield lambda _: None
        self._before += Seconds.now() - began

    def step(self, done: int, _metrics: object = None) -> None:
        """So many steps are done: told before the first and after each."""
        if not self._marks:
            self._first = done
        self._marks.append(Seconds.now())

    @property
    def taken(self) -> Seconds:
        """What all took; steps that an earlier process took are counted as these."""
        steps = len(self._marks) - 1
        share = (self._first + steps) / steps
        return self._before + (self._marks[-1] - self._marks[0]) * share

    @property
    def costs(self) -> dict[str, Cost]:
        """What a stage costs by either clock, from the steps after the first few."""
        warm = min(WARM, len(self._marks) - 2)
        timed = len(self._marks) - 1 - warm
        step = (self._marks[-1] - self._marks[warm]) * (1 / timed)
        return {
            "cpu": Cost(self._before.cpu, step.cpu),
            "wall": Cost(self._before.wall, step.wall),
        }
