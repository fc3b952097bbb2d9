"""One cache of several that hold other texts under the same teachers."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.duplicates import IdSet
from teacher_cache.assemble import Assembly, Intact, assemble, fitted_teachers, refuse_own
from teacher_cache.finish import Phase, silent
from teacher_cache.format import Block, CacheError, Manifest, ShardFormat
from teacher_cache.reader import CacheReader
from teacher_cache.writer import Rows, Texts

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged cache: how many rows each cache gave, and what was left out.

    `duplicates` were in a cache before; `leaks` would have been trained on although another cache
    holds them out.
    """

    manifest: Manifest
    rows: tuple[int, ...]
    duplicates: int
    leaks: int


def merge(
    caches: Sequence[CacheReader],
    out: Path,
    *,
    shard_format: ShardFormat | None = None,
    phase: Phase = silent,
) -> Merged:
    """Write one cache of the rows of several, as they are: first come those to train on.

    Of a text that comes twice the first row stays. One that any cache holds out is held out: it is
    left out where another trains on it. Both go by the text's id alone. Vectors are copied byte
    for byte; shards are those of the first cache's size. Memory holds one shard, and of every row
    some tens of bytes to know it again.

    Raises:
        CacheError: the caches have other teachers, prompts or pooled states; or `out` holds
            something else.
    """
    if len(caches) < 2:
        raise CacheError(f"expected two or more caches to merge, found {caches[0].path} alone")
    refuse_own(out, caches)
    first = caches[0]
    for other in caches[1:]:
        _check_teachers(first, other)
    with phase("comparing", sum(map(len, caches))) as advance:
        chosen = _Choice(caches)
        chosen.make(advance)
    intact = [Intact(cache) for cache in caches]
    made = Assembly(
        rows=len(chosen.order),
        held_out_rows=chosen.held_out,
        rows_per_shard=first.manifest.rows_per_shard,
        blocks=_blocks(caches),
        pooled=first.manifest.pooled,
        corpus={"merged": [part for cache in caches for part in _parts(cache.manifest.corpus)]},
        counts=chosen.counts(),
        texts=lambda rows: _texts([intact[i].texts(own) for i, own in chosen.places(rows)]),
        stored=lambda rows: _rows([intact[i].rows(own) for i, own in chosen.places(rows)]),
        teachers=fitted_teachers(caches),
    )
    manifest = assemble(out, made, shard_format=shard_format, phase=phase)
    return Merged(manifest, chosen.rows(), chosen.duplicates, chosen.leaks)


class _Choice:
    """Which rows stay, in which order. Rows of all caches are numbered one after the other."""

    def __init__(self, caches: Sequence[CacheReader]) -> None:
        self._caches = caches
        self._starts = np.cumsum([0, *map(len, caches)])
        self._counts = [copy.deepcopy(dict(cache.manifest.counts)) for cache in caches]
        self.order: NDArray[np.int64] = np.empty(0, np.int64)
        self.held_out = 0
        self.duplicates = 0
        self.leaks = 0

    def make(self, advance: Callable[[int], None]) -> None:
        """Go over all ids, the held-out ones first: what is held out anywhere is not trained on."""
        held_out, trained = IdSet(), IdSet()
        last = [
            self._kept(number, cache.held_out_rows, held_out, None, advance)
            for number, cache in enumerate(self._caches)
        ]
        before = [
            self._kept(number, cache.train_rows, trained, held_out, advance)
            for number, cache in enumerate(self._caches)
        ]
        self.order = np.concatenate([*before, *last])
        self.held_out = sum(map(len, last))
        if self.held_out == len(self.order):
            raise CacheError("every text to train on is held out in another of the caches")

    def _kept(
        self,
        number: int,
        rows: range,
        seen: IdSet,
        held_out: IdSet | None,
        advance: Callable[[int], None],
    ) -> NDArray[np.int64]:
        """Rows of one cache that stay; `held_out` is None where the rows are held out."""
        cache = self._caches[number]
        kept = array("q")
        for at in range(rows.start, rows.stop, _ROWS_AT_ONCE):
            some = range(at, min(at + _ROWS_AT_ONCE, rows.stop))
            left_out = []
            for row, id_ in zip(some, map(bytes.fromhex, cache.ids(some)), strict=True):
                leaks = held_out is not None and id_ in held_out
                if not leaks and seen.add(id_):
                    kept.append(row)
                    continue
                self.leaks += leaks
                self.duplicates += not leaks
                left_out.append(row)
            for source in cache.sources(left_out):
                self._uncount(number, source, was_held_out=held_out is None)
            advance(len(some))
        numbers: NDArray[np.int64] = np.frombuffer(kept, np.int64) + self._starts[number]
        return numbers

    def _uncount(self, number: int, source: str, *, was_held_out: bool) -> None:
        counts = self._counts[number].get(source, {})
        for name, change in (("kept", -1), ("held_out", -int(was_held_out)), ("duplicates", 1)):
            if name in counts:
                counts[name] += change

    def counts(self) -> dict[str, Any]:
        """What has become of every source's texts, over all caches."""
        total: dict[str, Any] = {}
        for counts in self._counts:
            for source, numbers in counts.items():
                before = total.get(source, {})
                total[source] = {name: before.get(name, 0) + numbers[name] for name in numbers}
        return total

    def rows(self) -> tuple[int, ...]:
        """How many rows each cache gives."""
        owners = np.searchsorted(self._starts, self.order, side="right") - 1
        return tuple(np.bincount(owners, minlength=len(self._caches)).tolist())

    def places(self, rows: range) -> list[tuple[int, list[int]]]:
        """Where rows of the merged cache lie: runs of a cache's number and rows there."""
        numbers = self.order[rows.start : rows.stop]
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        cuts = np.flatnonzero(np.diff(owners)) + 1
        return [
            (int(owner[0]), (run - self._starts[owner[0]]).tolist())
            for owner, run in zip(np.split(owners, cuts), np.split(numbers, cuts), strict=True)
        ]


def _check_teachers(first: CacheReader, other: CacheReader) -> None:
    found = [block.decisive() for block in first.manifest.blocks]
    asked = [block.decisive() for block in other.manifest.blocks]
    if first.teachers != other.teachers:
        raise CacheError(
            f"{first.path} has the teachers {', '.join(first.teachers)}, {other.path} has "
            f"{', '.join(other.teachers)}: caches are merged that hold other texts under the same "
            "teachers; the same texts under other teachers are put together with: "
            "jasper-cache join"
        )
    for one, another in zip(found, asked, strict=True):
        for name in one:
            if one[name] != another[name]:
                raise CacheError(
                    f"teacher {one['teacher']}: its {name} is {one[name]!r} in {first.path} and "
                    f"{another[name]!r} in {other.path}: expected the same vectors for the same "
                    "text"
                )
    if first.manifest.pooled != other.manifest.pooled:
        kept = [
            cache.manifest.pooled.teacher if cache.manifest.pooled else "no teacher"
            for cache in (first, other)
        ]
        raise CacheError(
            f"{first.path} keeps the pooled state of {kept[0]}, {other.path} of {kept[1]}: "
            "expected the same"
        )


def _blocks(caches: Sequence[CacheReader]) -> tuple[Block, ...]:
    """The first cache's, under all the licences that the caches name."""
    columns = zip(*(cache.manifest.blocks for cache in caches), strict=True)
    return tuple(
        replace(column[0], licence=" and ".join(dict.fromkeys(block.licence for block in column)))
        for column in columns
    )


def _parts(corpus: Mapping[str, Any]) -> list[Any]:
    return corpus["merged"] if set(corpus) == {"merged"} else [dict(corpus)]


def _texts(parts: Sequence[Texts]) -> Texts:
    return Texts(
        [id_ for part in parts for id_ in part.ids],
        [text for part in parts for text in part.texts],
        [source for part in parts for source in part.sources],
    )


def _rows(parts: Sequence[Rows]) -> Rows:
    kept = [part.pooled for part in parts if part.pooled is not None]
    return Rows(
        texts=_texts([part.texts for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        norms=np.concatenate([part.norms for part in parts]),
        vectors=np.concatenate([part.vectors for part in parts]),
        pooled=np.concatenate(kept) if kept else None,
    )
