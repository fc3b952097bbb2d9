"""The rows of a cache nearest to a query, under each teacher and under all of them together.

Whatever proposes the candidates, a pass over every row or an index, what is returned was compared
in float64 with the rows themselves.

Shape suffixes: N rows, W width of the cache, P width of the columns compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format import Block
from teacher_cache.reader import CacheReader

if TYPE_CHECKING:
    from teacher_cache.search_index import SearchIndex

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Rows = NDArray[np.int64]

TOGETHER = "together"

EXACT_BYTES = 4_000_000_000
"""Vectors up to this size are compared one and all, in seconds, and no index is kept."""

BLOCK_BYTES = 1 << 25
"""Vectors that are in memory at a time while all rows are read."""

_SLACK = 2e-3
"""By how much a float32 product with a float16 row may fall short of the cosine: 5e-4 from the
rounding of the row's length, and float32's own error is far below."""


@dataclass(frozen=True, slots=True)
class View:
    """What rows are compared by: one teacher's block, or several blocks side by side."""

    name: str
    blocks: tuple[Block, ...]

    def part(self, rows_NW: NDArray[np.floating]) -> Float64:
        """The columns of this view, at length 1, in float64 [N, P].

        Of two teachers together, the product of such rows is the mean of their cosines.
        """
        part_NP = np.concatenate(
            [rows_NW[:, block.columns] for block in self.blocks], axis=1, dtype=np.float64
        )
        # Summed along the row: equal rows get equal lengths, wherever in a batch they stand.
        norms: Float64 = np.sqrt((part_NP**2).sum(axis=1, keepdims=True))
        return part_NP / norms


def views(reader: CacheReader, teachers: Sequence[str] | None = None) -> tuple[View, ...]:
    """Each of the named teachers alone (all of them for None), then, of several, all together.

    Raises:
        CacheError: a name is not in the cache, or is given twice.
    """
    blocks = reader.blocks(teachers)
    each = tuple(View(block.teacher, (block,)) for block in blocks)
    return each if len(each) == 1 else (*each, View(TOGETHER, blocks))


def is_small(reader: CacheReader, limit: int) -> bool:
    """Whether all vectors together have at most `limit` bytes."""
    return len(reader) * reader.manifest.width * 2 <= limit


class Nearest:
    """The k rows nearest to a query in one view, found exactly while candidates come in any order.

    The similarity is the cosine in float64; of rows equally near, the first come first. `own` is
    the query's own row where it has one: it is passed over. Every row may be offered once.
    """

    def __init__(
        self, vector_W: Float16, view: View, k: int, *, teachers: int, own: int | None = None
    ) -> None:
        self.view = view
        self.k = k
        self.own = own
        self.rows: Rows = np.empty(0, np.int64)
        self.similarities: Float64 = np.empty(0)
        self._query_P = view.part(vector_W[None])[0]
        # Each block of a row has the length 1/√(teachers).
        self._length = np.sqrt(len(view.blocks) / teachers)

    def probe(self, width: int) -> Float32:
        """The query as a vector of the cache's full width, 0 outside of the view.

        Its product with a row is a constant times the cosine: so one index over whole rows serves
        every view.
        """
        probe_W = np.zeros(width, np.float32)
        start = 0
        for block in self.view.blocks:
            probe_W[block.columns] = self._query_P[start : start + block.width]
            start += block.width
        return probe_W

    @property
    def is_full(self) -> bool:
        """Whether there are k rows to be beaten."""
        return len(self.rows) == self.k

    def radius(self, products: Float32) -> float:
        """The product with `probe` below which no row of a batch can be among the k.

        Until there are k rows to be beaten, `products`, the largest of the batch, decide.
        """
        if self.is_full:
            return float(self.similarities[-1] * self._length) - _SLACK
        if len(products) <= self.k:
            return -np.inf
        # One more than k: the query's own row may be the nearest of all.
        return float(np.partition(products, -self.k - 1)[-self.k - 1]) - _SLACK

    def offer(self, numbers: Rows, rows_NW: Float16) -> None:
        """Compare candidates, by their numbers and vectors, with the query and keep the nearest."""
        others = numbers != self.own
        products = self.view.part(rows_NW[others]) * self._query_P
        rows = np.concatenate([self.rows, numbers[others]])
        similarities = np.concatenate([self.similarities, products.sum(axis=1)])
        order = np.lexsort((rows, -similarities))[: self.k]
        self.rows, self.similarities = rows[order], similarities[order]


def search(
    reader: CacheReader,
    vector_W: Float16,
    chosen: Sequence[View],
    k: int,
    *,
    own: int | None = None,
    index: SearchIndex | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Nearest]:
    """The k rows nearest to a vector of the cache's width, by the name of the view.

    With an index, its candidates are compared; without one, all rows (`advance` is told how many
    were). Blocks that no view asks for may be anything.
    """
    teachers = len(reader.teachers)
    found = {view.name: Nearest(vector_W, view, k, teachers=teachers, own=own) for view in chosen}
    if index is None:
        _compare_all(reader, list(found.values()), advance)
    else:
        for each in found.values():
            candidates = index.candidates(each.probe(reader.manifest.width), k)
            reader.prefetch(candidates)
            each.offer(candidates, reader.vectors(candidates))
    return found


def _compare_all(
    reader: CacheReader, sought: Sequence[Nearest], advance: Callable[[int], None]
) -> None:
    import faiss

    width = reader.manifest.width
    probes = [each.probe(width)[None] for each in sought]
    # Its codes are float16 numbers, as in the cache: rows enter as they are, with nothing lost.
    flat = faiss.IndexScalarQuantizer(
        width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    flat.is_trained = True
    for start, rows_NW in row_blocks(reader):
        flat.add_sa_codes(rows_NW.view(np.uint8))
        for each, probe in zip(sought, probes, strict=True):
            best = 1 if each.is_full else min(each.k + 1, len(rows_NW))
            products, _ = flat.search(probe, best)
            _, _, places = flat.range_search(probe, each.radius(products[0]))
            each.offer(start + places, rows_NW[places])
        flat.reset()
        advance(len(rows_NW))


def row_blocks(reader: CacheReader) -> Iterator[tuple[int, Float16]]:
    """All rows in order, some megabytes at a time: the first one's number and their vectors."""
    step = max(1, BLOCK_BYTES // (2 * reader.manifest.width))
    for start in range(0, len(reader), step):
        yield start, reader.vectors(range(start, min(start + step, len(reader))))


def row_of(reader: CacheReader, id_: bytes) -> int | None:
    """The row with this id, None if there is none; opens shard after shard until it is found."""
    for number in range(len(reader.manifest.shards)):
        place = place_of(np.frombuffer(reader.shard_ids(number), np.uint64).reshape(-1, 2), id_)
        if place is not None:
            return number * reader.manifest.rows_per_shard + place
    return None


def place_of(ids: NDArray[np.uint64], id_: bytes) -> int | None:
    """Where an id stands among many, each two 64-bit numbers; None if it does not."""
    wanted = np.frombuffer(id_, np.uint64)
    places = np.flatnonzero(ids[:, 0] == wanted[0])
    return next((int(place) for place in places if ids[place, 1] == wanted[1]), None)


def overlap(found: Mapping[str, Nearest]) -> dict[tuple[str, str], float]:
    """The share of neighbours that each two teachers have in common."""
    alone = [each for each in found.values() if len(each.view.blocks) == 1]
    return {
        (a.view.name, b.view.name): len(np.intersect1d(a.rows, b.rows)) / max(len(a.rows), 1)
        for a, b in combinations(alone, 2)
    }
