"""Rows → batches: texts and targets of a step's rows, made ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.model import PooledBatch, Student, StudentBatch, TextBatch
from student.order import Order
from teacher_cache.format import shard_path
from teacher_cache.reader import CacheReader

T = TypeVar("T")


PREFETCH = 2
"""Steps between asking the disk for a batch's vectors and reading them."""

Inputs = Callable[[NDArray[np.int64]], StudentBatch]
"""What the student is given for these rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step: its rows, their texts (or the states of these) and their
    targets [b, T] in float16."""

    step: int
    rows: NDArray[np.int64]
    texts: StudentBatch
    target: Tensor


def texts_of(reader: CacheReader, student: Student, micro_batch: int | None = None) -> Inputs:
    """Rows as their texts, tokenised.

    Texts of like length are padded together: `micro_batch` of them, or a quarter of all.
    """

    def inputs(rows: NDArray[np.int64]) -> TextBatch:
        chunks = len(rows) // micro_batch if micro_batch else 4
        return student.batch(reader.texts(rows), max(1, chunks))

    return inputs


def states_of(reader: CacheReader) -> Inputs:
    """Rows as the pooled states that the cache keeps."""
    return lambda rows: PooledBatch(torch.from_numpy(reader.pooled(rows)))


def batches(
    reader: CacheReader,
    inputs: Inputs,
    order: Order,
    steps: Iterable[int],
    *,
    teachers: Sequence[str] | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """The batches of these steps, made ahead of their use by a thread.

    Of the global batch each process has an equal run of rows, in the order of the processes: what
    they gather is the batch that one process would have had, row by row.
    """
    share = order.batch_size // processes
    advised: tuple[int, ...] = ()

    @lru_cache(maxsize=2 * PREFETCH)
    def own_rows(step: int) -> NDArray[np.int64]:
        return order.rows_of(step)[process * share : (process + 1) * share]

    def make(step: int) -> Batch:
        nonlocal advised
        ahead = order.shards_next(step)
        if ahead != advised:
            advised = ahead
            read_ahead(shard_path(reader.path, n, reader.manifest.shards[n]) for n in ahead)
        if not ahead:
            reader.prefetch(own_rows(step + PREFETCH))
        rows = own_rows(step)
        target = torch.from_numpy(reader.vectors(rows, teachers))
        return Batch(step, rows, inputs(rows), target)

    return made_ahead(make, steps)


def read_ahead(paths: Iterable[Path]) -> None:
    """Ask the system to read files into its page cache, in the background, from end to end.

    The rows of a window are taken at random: without it, each would cost the disk a seek.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


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
