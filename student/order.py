"""Which rows make step k: a pure function of (seed, epoch, k). Nothing to restore, nothing to skip.

No permutation of the rows is stored: a keyed bijection of 0…n-1 gives the row at any place of any
epoch, so that 100 million rows cost no memory and every number of processes sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Mode = Literal["shuffle", "window", "corpus"]

_ROUNDS = 6
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHARDS, _WINDOWS = 1, 2
"""Third part of a key: the shuffle of the shards; the first window's, followed by the others'."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of training: `rows` rows, epoch after epoch, in equal batches.

    Batches are cut from the endless sequence of epochs, so none is short and none is dropped; one
    that lies across two epochs has rows of both. In every mode an epoch has each row once:

    - `shuffle`: all rows, anew each epoch.
    - `window`: the shards (`rows_per_shard` rows, the last may be short) in shuffled order, and
      the rows shuffled within each window of `window_shards` of them. What is read at any time
      fits into memory, and the disk sees whole shards.
    - `corpus`: as the rows lie in the cache, every epoch. Related texts, which a corpus keeps
      adjacent, come in one batch.
    """

    rows: int
    batch_size: int
    seed: int
    mode: Mode = "shuffle"
    rows_per_shard: int = 8192
    window_shards: int = 16

    def rows_of(self, step: int) -> Rows:
        """The rows of step `step` (counted from 0)."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.rows)
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._epoch(places[here], epoch)
        return rows

    def shards_next(self, step: int) -> tuple[int, ...]:
        """The shards of the window after the one that this step ends in; none in other modes."""
        if self.mode != "window":
            return ()
        epoch, place = divmod((step + 1) * self.batch_size - 1, self.rows)
        windows = self._windows(epoch)
        number = int(np.searchsorted(windows.ends, place, side="right")) + 1
        if number == len(windows.ends):
            windows, number = self._windows(epoch + 1), 0
        first = number * self.window_shards
        return tuple(windows.shards[first : first + self.window_shards].tolist())

    def _epoch(self, places: Rows, epoch: int) -> Rows:
        if self.mode == "corpus":
            return places
        if self.mode == "shuffle":
            return permuted(places, self.rows, self.seed, epoch)
        windows = self._windows(epoch)
        found = np.empty(len(places), np.int64)
        numbers = np.searchsorted(windows.ends, places, side="right")
        for number in np.unique(numbers).tolist():
            here = numbers == number
            found[here] = windows.rows_of(number, places[here], (self.seed, epoch))
        return found

    def _windows(self, epoch: int) -> _Windows:
        return _windows(self.rows, self.rows_per_shard, self.window_shards, self.seed, epoch)


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """One epoch's shards in their shuffled order: sixteen bytes a shard, nothing a row.

    `ends` are the places at which the windows end, `starts` those at which the shards begin.
    """

    shards: Rows
    starts: Rows
    ends: Rows
    rows_per_shard: int
    window_shards: int

    def rows_of(self, number: int, places: Rows, key: tuple[int, int]) -> Rows:
        first = number * self.window_shards
        start = int(self.starts[first])
        size = int(self.ends[number]) - start
        inside = start + permuted(places - start, size, *key, _WINDOWS + number)
        position = np.searchsorted(self.starts, inside, side="right") - 1
        return self.shards[position] * self.rows_per_shard + inside - self.starts[position]


@lru_cache(maxsize=4)
def _windows(rows: int, rows_per_shard: int, window_shards: int, seed: int, epoch: int) -> _Windows:
    count = -(-rows // rows_per_shard)
    shards = permuted(np.arange(count), count, seed, epoch, _SHARDS)
    sizes = np.minimum(rows - shards * rows_per_shard, rows_per_shard)
    stops = np.cumsum(sizes)
    last = np.arange(window_shards, count + window_shards, window_shards).clip(max=count) - 1
    return _Windows(shards, stops - sizes, stops[last], rows_per_shard, window_shards)


def permuted(places: Rows, size: int, *key: int) -> Rows:
    """Where a shuffle of 0…size-1, fixed by its key (seed, epoch, …), sends these places.

    A Feistel network over the smallest even number of bits that holds `size`; a value that falls
    outside is sent through again until it falls inside, which keeps it a bijection.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in keys:
            mixed = (right ^ round_key) * _MIX
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)
