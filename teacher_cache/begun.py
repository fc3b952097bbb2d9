"""`build.json`: under which teachers the shards are encoded, and who may go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from teacher_cache.encoders import loading
from teacher_cache.finish import Build, first_difference
from teacher_cache.format import (
    BUILD_FILE,
    Block,
    CacheError,
    Plan,
    Pooled,
    ShardFormat,
    identity_of,
    read_json,
)
from teacher_cache.located import Located
from teacher_cache.writer import write_first


def read_begun(
    cache: Path, found: Sequence[Located], shard_format: ShardFormat | None = None
) -> Build | None:
    """What a cache was begun with, if it was; those who go on must come with the same teachers.

    Raises:
        CacheError: they come with others, or ask for another format of shards.
    """
    path = cache / BUILD_FILE
    if not path.exists():
        return None
    begun = Build.from_json(read_json(path), str(path))
    if shard_format not in (None, begun.shard_format):
        raise CacheError(
            f"{cache} has {begun.shard_format} shards, {shard_format} is asked for; "
            "build into another folder, or leave the format out to go on"
        )
    asked = [one.teacher.name for one in found]
    there = [block.teacher for block in begun.blocks]
    if asked != there:
        raise CacheError(
            f"{cache} is built with the teachers {', '.join(there)}, not {', '.join(asked)}; "
            "build into another folder"
        )
    pooled = next((one.teacher.name for one in found if one.teacher.keep_pooled), None)
    kept = begun.pooled.teacher if begun.pooled else None
    if pooled != kept:
        raise CacheError(
            f"{cache} keeps the pooled state of {kept or 'no teacher'}, now that of "
            f"{pooled or 'none'} is asked for; build into another folder"
        )
    for block, one in zip(begun.blocks, found, strict=True):
        # A teacher that is still to be fitted has no fingerprint to compare.
        declared = loading.declared(one.teacher, one.fingerprint or block.fingerprint)
        if loading.may_read(one.teacher, block.max_tokens):
            # Whether it does is known when it is loaded.
            declared["max_tokens"] = block.max_tokens
        difference = first_difference(
            {name: block.to_json()[name] for name in declared}, declared, block.teacher
        )
        if difference:
            raise CacheError(
                f"{cache} was begun with another teacher: {difference}; "
                "build into another folder, or with the teacher it was begun with"
            )
    return begun


def begin(
    cache: Path,
    plan: Plan,
    found: Sequence[Located],
    blocks: Sequence[Block],
    pooled: Pooled | None,
    shard_format: ShardFormat | None,
) -> Build:
    """Write down under which loaded teachers the shards will be encoded, unless that was done.

    Raises:
        CacheError: that was done, and under others.
    """
    identity = _identity(plan, blocks, pooled)
    begun = Build(identity, tuple(blocks), pooled, shard_format or "arrow")
    first = read_begun(cache, found, shard_format)
    if first is None:
        if write_first(cache / BUILD_FILE, begun):
            return begun
        # Ranks arrive here together, and so may two builds that differ.
        first = read_begun(cache, found, shard_format)
    # Earlier builds wrote down the recipe's longest input, whatever the model's own is.
    asked = [
        replace(block, max_tokens=one.teacher.max_tokens)
        for block, one in zip(blocks, found, strict=True)
    ]
    if first is None or first.identity not in (identity, _identity(plan, asked, pooled)):
        there = [] if first is None else [block.decisive() for block in first.blocks]
        difference = first_difference(there, [block.decisive() for block in blocks], "blocks")
        raise CacheError(
            f"{cache} was begun under the identity {first and first.identity}, these teachers give "
            f"{identity} ({difference}); build into another folder, or with the teachers it was "
            "begun with"
        )
    return first


def _identity(plan: Plan, blocks: Sequence[Block], pooled: Pooled | None) -> str:
    return identity_of(plan.ids_digest, plan.held_out_rows, plan.rows_per_shard, blocks, pooled)
