"""One cache of several that hold the same texts under different teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teacher_cache.assemble import Assembly, Intact, assemble, fitted_teachers, refuse_own
from teacher_cache.finish import Phase, silent
from teacher_cache.format import Block, CacheError, Manifest, ShardFormat
from teacher_cache.reader import CacheReader
from teacher_cache.writer import Rows, concatenate

_ROWS_COMPARED = 8192


def join(
    caches: Sequence[CacheReader],
    out: Path,
    *,
    keep_pooled: str | None = None,
    shard_format: ShardFormat | None = None,
    phase: Phase = silent,
) -> Manifest:
    """Write the cache that one build with all these teachers would have given.

    Every row's id and source are compared first. The blocks follow one another as the caches are
    given, each normalised again in float32 and rounded to float16 a second time: a value may differ
    from the build's in the last place. The identity is the build's all the same. Shards have the
    first cache's size. Of several caches that keep a pooled state, `keep_pooled` names the teacher
    whose state stays.

    Raises:
        CacheError: the caches hold other texts, sources or held-out rows, or a teacher twice; or
            `out` holds something else.
    """
    first, *others = caches
    if not others:
        raise CacheError(f"expected two or more caches to join, found {first.path} alone")
    refuse_own(out, caches)
    _check_teachers(caches)
    keeper = _keeper(caches, keep_pooled)
    for other in others:
        _check_sizes(first, other)
    with phase("comparing", len(first)) as advance:
        for start in range(0, len(first), _ROWS_COMPARED):
            rows = range(start, min(start + _ROWS_COMPARED, len(first)))
            for other in others:
                _compare(first, other, rows)
            advance(len(rows))
    intact = [Intact(cache) for cache in caches]
    made = Assembly(
        rows=len(first),
        held_out_rows=first.manifest.held_out_rows,
        rows_per_shard=first.manifest.rows_per_shard,
        blocks=_blocks(caches),
        pooled=None if keeper is None else keeper.manifest.pooled,
        corpus=first.manifest.corpus,
        counts=first.manifest.counts,
        texts=intact[0].texts,
        stored=lambda rows: _joined(intact, keeper, rows),
        teachers=fitted_teachers(caches),
    )
    return assemble(out, made, shard_format=shard_format, phase=phase)


def _check_teachers(caches: Sequence[CacheReader]) -> None:
    holders: dict[str, CacheReader] = {}
    for cache in caches:
        for teacher in cache.teachers:
            if teacher in holders:
                raise CacheError(
                    f"the teacher {teacher} is in {holders[teacher].path} and in {cache.path}: "
                    "caches are joined that hold the same texts under different teachers; other "
                    "texts under the same teachers are put together with: jasper-cache merge"
                )
            holders[teacher] = cache


def _keeper(caches: Sequence[CacheReader], keep_pooled: str | None) -> CacheReader | None:
    """The cache whose pooled states are kept."""
    keepers = {cache.manifest.pooled.teacher: cache for cache in caches if cache.manifest.pooled}
    if keep_pooled is not None and keep_pooled not in keepers:
        raise CacheError(
            f"none of the caches keeps the pooled state of {keep_pooled}; "
            f"kept are those of {', '.join(keepers) or 'no teacher'}"
        )
    if keep_pooled is None and len(keepers) > 1:
        raise CacheError(
            f"the caches keep the pooled states of {' and '.join(keepers)}, a joined one keeps one "
            "teacher's: choose it with --keep-pooled"
        )
    return keepers.get(keep_pooled) if keep_pooled else next(iter(keepers.values()), None)


def _check_sizes(first: CacheReader, other: CacheReader) -> None:
    for what, found, expected in (
        ("rows", len(other), len(first)),
        ("held-out rows", len(other.held_out_rows), len(first.held_out_rows)),
    ):
        if found != expected:
            raise CacheError(
                f"{other.path} has {found:,} {what}, {first.path} has {expected:,}: "
                "expected the same texts in the same order, built from the same corpus"
            )


def _compare(first: CacheReader, other: CacheReader, rows: range) -> None:
    if first.ids(rows) == other.ids(rows) and first.sources(rows) == other.sources(rows):
        return
    for row in rows:
        if first.ids([row]) != other.ids([row]):
            (one,), (another,) = first.texts([row]), other.texts([row])
            raise CacheError(
                f"row {row} of {first.path} is the text {one[:60]!r}, of {other.path} "
                f"{another[:60]!r}: expected the same texts in the same order"
            )
        if first.sources([row]) != other.sources([row]):
            (one,), (another,) = first.sources([row]), other.sources([row])
            raise CacheError(
                f"row {row} of {first.path} comes from the source {one!r}, of {other.path} from "
                f"{another!r}: prompts go by source, expected the same"
            )


def _blocks(caches: Sequence[CacheReader]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for block in (block for cache in caches for block in cache.manifest.blocks):
        blocks.append(replace(block, offset=sum(before.width for before in blocks)))
    return tuple(blocks)


def _joined(intact: Sequence[Intact], keeper: CacheReader | None, rows: range) -> Rows:
    given = [cache.rows(rows) for cache in intact]
    blocks = [
        one.vectors[:, block.columns].astype(np.float32)
        for one, cache in zip(given, intact, strict=True)
        for block in cache.reader.manifest.blocks
    ]
    lengths = [np.sqrt(np.einsum("nw,nw->n", block, block)) for block in blocks]
    return Rows(
        texts=given[0].texts,
        tokens=np.concatenate([one.tokens for one in given], axis=1),
        norms=np.concatenate([one.norms for one in given], axis=1),
        vectors=concatenate(blocks, np.stack(lengths, axis=1)),
        pooled=_pooled(given, intact, keeper),
    )


def _pooled(
    given: Sequence[Rows], intact: Sequence[Intact], keeper: CacheReader | None
) -> NDArray[np.float16] | None:
    for rows, cache in zip(given, intact, strict=True):
        if cache.reader is keeper:
            return rows.pooled
    return None
