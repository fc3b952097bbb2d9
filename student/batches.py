"""Rows → batches. Which rows make step k is a pure function of (seed, k): nothing to restore.

No permutation is stored: a keyed bijection of 0…n-1 gives the row at any position of any epoch,
so that 100 million rows cost no memory and a resumed run needs no skipping.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.model import Student, TextBatch
from teacher_cache.reader import CacheReader

T = TypeVar("T")

_ROUNDS = 6
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Order:
    """The order of training: full shuffles of `rows` rows, epoch after epoch, in equal batches.

    Batches are cut from the endless sequence of epochs, so none is short and none is dropped; one
    that lies across two epochs has rows of both.
    """

    rows: int
    batch_size: int
    seed: int

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """The rows of step `step` (counted from 0)."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.rows)
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permuted(places[here], self.rows, self.seed, int(epoch))
        return rows


def permuted(places: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a shuffle of 0…size-1, fixed by seed and epoch, sends these places.

    A Feistel network over the smallest even number of bits that holds `size`; a value that falls
    outside is sent through again until it falls inside, which keeps it a bijection.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            mixed = (right ^ key) * _MIX
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step: its rows, their texts and their targets [b, T] in float16."""

    step: int
    rows: NDArray[np.int64]
    texts: TextBatch
    target: Tensor


def batches(
    reader: CacheReader,
    student: Student,
    order: Order,
    steps: Iterable[int],
    *,
    teachers: Sequence[str] | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """The batches of these steps, made ahead of their use by a thread.

    Of the global batch, process p has rows p, p + processes, …: together they have it all.
    """

    def make(step: int) -> Batch:
        rows = order.rows_of(step)[process::processes]
        target = torch.from_numpy(reader.vectors(rows, teachers))
        return Batch(step, rows, student.batch(reader.texts(rows)), target)

    return made_ahead(make, steps)


def made_ahead(make: Callable[[int], T], items: Iterable[int], depth: int = 4) -> Iterator[T]:
    """`map(make, items)`, run by one thread at most `depth` items ahead of the consumer."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
