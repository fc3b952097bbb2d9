"""What a look into a cache measures: lengths, norms, and how far its teachers agree.

Small caches are measured whole. Of large ones a sample is, drawn by a fixed seed, and its size is
part of what is found: the answer takes seconds whatever the cache's size, and never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format import Manifest
from teacher_cache.reader import CacheReader
from teacher_cache.search import views

Float32 = NDArray[np.float32]

SHARDS = 64
"""Shards whose lengths and norms are read: half a million rows."""

PAIR_ROWS = 2000
"""Rows whose pairs are compared: two million pairs, which are ranked in a second."""

NEIGHBOURS = 10

_SEED = 0

_MEASURED = ("id", "text", "source", "tokens", "norms")
"""All columns but those of vectors, whose widths are known and which Parquet would decode."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two teachers agree on the sampled rows.

    `order` is Spearman's correlation of the similarities of all pairs. `neighbours` is the share of
    each row's ten nearest others, among the sampled rows, that they have in common.
    """

    teachers: tuple[str, str]
    order: float
    neighbours: float


@dataclass(frozen=True, slots=True)
class Survey:
    """What was measured, row by row, for tables and pictures.

    Of the rows in `shards`: `characters` [N] of the text; `tokens` and raw `norms` [N, teachers];
    and the bytes that each column takes for a row, on average. Of `pair_rows` rows: the cosines of
    all their pairs by view, and the teachers' agreement.
    """

    reader: CacheReader
    shards: tuple[int, ...]
    characters: NDArray[np.int64]
    tokens: NDArray[np.int32]
    norms: Float32
    row_bytes: Mapping[str, float]
    pair_rows: int
    similarities: Mapping[str, Float32]
    agreements: tuple[Agreement, ...]


def survey(reader: CacheReader, advance: Callable[[int], None] = lambda _: None) -> Survey:
    """Measure a cache. `advance` is told of every shard that was read.

    Raises:
        CacheError: a shard is damaged.
    """
    import pyarrow.compute as pc

    generator = np.random.default_rng(_SEED)
    shards = _sample(generator, len(reader.manifest.shards), SHARDS)
    teachers = len(reader.teachers)
    characters, tokens, norms = [], [], []
    sizes: dict[str, int] = {}
    for number in shards:
        batch = reader.shard(number, _MEASURED)
        characters.append(pc.utf8_length(batch.column("text")).to_numpy())
        tokens.append(batch.column("tokens").flatten().to_numpy())
        norms.append(batch.column("norms").flatten().to_numpy())
        for name in batch.schema.names:
            sizes[name] = sizes.get(name, 0) + batch.column(name).nbytes
        advance(1)
    rows = sum(map(len, characters))
    sampled = _sample(generator, len(reader), PAIR_ROWS)
    similarities, agreements = _compared(reader, sampled)
    return Survey(
        reader=reader,
        shards=shards,
        characters=np.concatenate(characters).astype(np.int64),
        tokens=np.concatenate(tokens).reshape(rows, teachers),
        norms=np.concatenate(norms).reshape(rows, teachers),
        row_bytes={
            **{name: size / rows for name, size in sizes.items()},
            **_vector_bytes(reader.manifest),
        },
        pair_rows=len(sampled),
        similarities=similarities,
        agreements=agreements,
    )


def _vector_bytes(manifest: Manifest) -> dict[str, float]:
    """The bytes of a row in each column of vectors, which all rows have."""
    widths = {"embedding": manifest.width}
    if manifest.pooled is not None:
        widths["pooled"] = manifest.pooled.width
    size = np.dtype(manifest.dtype).itemsize
    return {name: float(width * size) for name, width in widths.items()}


def _sample(generator: np.random.Generator, population: int, size: int) -> tuple[int, ...]:
    if population <= size:
        return tuple(range(population))
    return tuple(sorted(generator.choice(population, size, replace=False).tolist()))


def _compared(
    reader: CacheReader, rows: tuple[int, ...]
) -> tuple[dict[str, Float32], tuple[Agreement, ...]]:
    from scipy.stats import rankdata

    vectors = reader.vectors(rows)
    pairs = np.triu_indices(len(rows), 1)
    neighbours = min(NEIGHBOURS, len(rows) - 1)
    similarities, ranks, nearest = {}, {}, {}
    for view in views(reader):
        part = view.part(vectors).astype(np.float32)
        products = part @ part.T
        similarities[view.name] = products[pairs]
        if len(view.blocks) == 1:
            ranks[view.name] = rankdata(similarities[view.name])
            np.fill_diagonal(products, -np.inf)
            nearest[view.name] = np.argsort(-products, axis=1, kind="stable")[:, :neighbours]
    agreements = tuple(
        Agreement((a, b), _correlation(ranks[a], ranks[b]), _shared(nearest[a], nearest[b]))
        for a, b in combinations(ranks, 2)
        if len(rows) > 2
    )
    return similarities, agreements


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's correlation; of ranks it is Spearman's. 0 where one of them never changes."""
    a, b = a - a.mean(), b - b.mean()
    lengths = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths else 0.0


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    common = (a[:, :, None] == b[:, None, :]).any(axis=2)
    return float(common.mean())
