"""Which jobs of a sweep may begin: each after the one that it starts from. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from student.sweep.plan import PlannedStage


class HasStage(Protocol):
    """A job of a planned stage run."""

    @property
    def planned(self) -> PlannedStage:
        """The stage run."""


J = TypeVar("J", bound=HasStage)


class Waiting(Generic[J]):
    """Jobs that have not begun, in the order given: a job comes after the one it starts from."""

    def __init__(self, jobs: Sequence[J]) -> None:
        self._waiting = {job.planned.key: job for job in jobs}
        self._unfinished = set(self._waiting)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> J | None:
        """The first job that may begin, taken out; None where there is none at the moment."""
        for key, job in self._waiting.items():
            if job.planned.after not in self._unfinished:
                return self._waiting.pop(key)
        return None

    def ended(self, key: str, problem: str | None) -> Iterator[tuple[str, str | None]]:
        """Take note of a job's end. Gives it back, and with a failed one all that start from it."""
        self._unfinished.discard(key)
        yield key, problem
        if problem is None:
            return
        for later in [k for k, job in self._waiting.items() if job.planned.after == key]:
            del self._waiting[later]
            yield from self.ended(later, problem)
