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

from student.inputs import PooledBatch, StudentBatch, TextBatch
from student.model import Student
from student.order import Order
from teacher_cache.format import shard_path
from teacher_cache.reader import CacheReader

T = TypeVar("T")


PREFETCH = 2
"""Steps between asking the disk for a batch's vectors and reading them."""

Rows = NDArray[np.int64]
Target = Tensor | StudentBatch
"""The teachers' vectors [b, T]; or captions, whose vectors the student itself gives."""
Inputs = Callable[[Rows], StudentBatch]
"""What the student is given for these rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step: its rows, what the student is given for them (texts, the
    states of these, or images), and their targets."""

    step: int
    rows: Rows
    texts: StudentBatch
    target: Target


@dataclass(frozen=True, slots=True)
class Samples:
    """What a stage trains on. `of` gives, for some rows, what the student reads and the target.

    Rows to train on are 0 to `train` - 1; `held_out` are others. Together they have a place
    (`where`, for people). `ahead` and `prefetch` tell the system which shards, which rows are next.
    `rows_at` says at which rows of the cache they lie, for people.
    """

    train: int
    held_out: Rows
    of: Callable[[Rows], tuple[StudentBatch, Target]]
    rows_per_shard: int
    where: str
    ahead: Callable[[Sequence[int]], None] = lambda _shards: None
    prefetch: Callable[[Rows], None] = lambda _rows: None
    rows_at: Callable[[Rows], Rows] = lambda rows: rows


def cached(
    reader: CacheReader,
    inputs: Inputs,
    chosen: Rows | None = None,
    teachers: Sequence[str] | None = None,
) -> Samples:
    """The rows of a cache, with the vectors of some of its teachers in float16; all for None.

    Of the rows to train on only the `chosen` ones, which ascend; all for None.
    """
    per_shard = reader.manifest.rows_per_shard
    train = len(reader.train_rows) if chosen is None else len(chosen)

    def rows_at(places: Rows) -> Rows:
        if chosen is None:
            return places
        return np.where(
            places < train,
            chosen[np.minimum(places, train - 1)],
            places - train + len(reader.train_rows),
        )

    def of(places: Rows) -> tuple[StudentBatch, Target]:
        rows = rows_at(places)
        return inputs(rows), torch.from_numpy(reader.vectors(rows, teachers))

    def ahead(runs: Sequence[int]) -> None:
        # As many chosen rows as a shard has may lie in several shards.
        ends = [(run * per_shard, min((run + 1) * per_shard, train) - 1) for run in runs]
        found = {
            shard
            for first, last in rows_at(np.reshape(ends, (-1, 2)).astype(np.int64)) // per_shard
            for shard in range(first, last + 1)
        }
        read_ahead(shard_path(reader.path, n, reader.manifest.shards[n]) for n in sorted(found))

    return Samples(
        train=train,
        held_out=train + np.arange(len(reader.held_out_rows)),
        of=of,
        rows_per_shard=per_shard,
        where=str(reader.path),
        ahead=ahead,
        prefetch=lambda places: reader.prefetch(rows_at(places)),
        rows_at=rows_at,
    )


def texts_of(reader: CacheReader, student: Student, micro_batch: int | None = None) -> Inputs:
    """Rows as their texts, tokenised; like lengths, or `micro_batch` of them, padded together."""

    def inputs(rows: Rows) -> TextBatch:
        return student.batch(reader.texts(rows), micro_batch=micro_batch)

    return inputs


def states_of(reader: CacheReader) -> Inputs:
    """Rows as the pooled states that the cache keeps."""
    return lambda rows: PooledBatch(torch.from_numpy(reader.pooled(rows)))


def batches(
    samples: Samples,
    order: Order,
    steps: Iterable[int],
    *,
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
    def own_rows(step: int) -> Rows:
        return order.rows_of(step)[process * share : (process + 1) * share]

    def make(step: int) -> Batch:
        nonlocal advised
        ahead = order.shards_next(step)
        if ahead != advised:
            advised = ahead
            samples.ahead(ahead)
        if not ahead:
            samples.prefetch(own_rows(step + PREFETCH))
        rows = own_rows(step)
        return Batch(step, samples.rows_at(rows), *samples.of(rows))

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
