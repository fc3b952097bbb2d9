"""From a plan to a finished cache: what encoding, joining and merging share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from teacher_cache.files import is_temporary, remove, settle
from teacher_cache.format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    PLAN_FILE,
    PLAN_FOLDER,
    SHARD_FOLDER,
    VECTOR_DTYPE,
    Block,
    CacheError,
    FileRecord,
    Manifest,
    Plan,
    Pooled,
    Record,
    ShardFormat,
    read_json,
    read_pooled,
    record_path,
    shard_path,
)
from teacher_cache.writer import committed, write_record

Phase = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a phase of work: (what, how many in all or None) → a context whose value is told each
advance. How a caller shows progress is the caller's affair."""


def silent(_: str, __: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A `Phase` that shows nothing."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Build(Record):
    """`build.json`: under which teachers the shards of an unfinished cache are encoded.

    `shard_format` is how they are written; the identity does not depend on it.
    """

    identity: str
    blocks: tuple[Block, ...]
    pooled: Pooled | None
    shard_format: ShardFormat

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a build's record; its parts become records."""
        begun = super().from_json(data, where).with_records(where, blocks=Block)
        return replace(begun, pooled=read_pooled(begun.pooled, where))


def check_new(cache: Path) -> None:
    """A cache begins in an empty folder, or in one where planning was broken off.

    One that another builder planned a moment ago will do as well.
    """
    if cache.exists() and not cache.is_dir():
        raise CacheError(f"{cache} is a file, not a folder; give another one")
    for path in cache.glob("*"):
        if path.name != PLAN_FOLDER and not is_temporary(path):
            if (cache / PLAN_FILE).exists():
                return
            raise CacheError(
                f"{cache} is not a cache: it has no {PLAN_FILE} but it holds {path.name}; "
                "give an empty folder or a new one"
            )


def finish(cache: Path, plan: Plan, begun: Build) -> Manifest | None:
    """Write the manifest, once every shard is there; None as long as one is missing.

    Raises:
        CacheError: a record tells of other rows than the plan.
    """
    manifest = None
    while (shards := _records(cache, plan)) is not None:
        if manifest is not None and manifest.shards == shards:
            _remove_orphans(cache)
            return manifest
        # Once more if another builder wrote a lost shard again meanwhile.
        manifest = manifest_of(cache, plan, begun, shards)
        path = cache / MANIFEST_FILE
        if not path.exists() or Manifest.from_json(read_json(path), str(path)) != manifest:
            settle(cache / SHARD_FOLDER)  # who died right behind a record did not do it
            write_record(path, manifest)
    return None


def _records(cache: Path, plan: Plan) -> tuple[FileRecord, ...] | None:
    """The records of all shards, None as long as one of them is missing."""
    records = [committed(cache, index) for index in range(len(plan.shards))]
    shards = tuple(record for record in records if record is not None)
    return shards if len(shards) == len(records) else None


def manifest_of(cache: Path, plan: Plan, begun: Build, shards: tuple[FileRecord, ...]) -> Manifest:
    """The manifest of these records.

    Raises:
        CacheError: a record tells of other rows than the plan.
    """
    for index, (record, planned) in enumerate(zip(shards, plan.shards, strict=True)):
        if record.ids_digest != planned.ids_digest:
            raise CacheError(f"{record_path(cache, index)} tells of other rows than the plan's")
    return Manifest(
        format_version=FORMAT_VERSION,
        identity=begun.identity,
        rows=plan.rows,
        held_out_rows=plan.held_out_rows,
        rows_per_shard=plan.rows_per_shard,
        width=sum(block.width for block in begun.blocks),
        dtype=VECTOR_DTYPE,
        ids_digest=plan.ids_digest,
        blocks=begun.blocks,
        pooled=begun.pooled,
        corpus=plan.corpus,
        counts=plan.counts,
        shards=shards,
    )


def _remove_orphans(cache: Path) -> None:
    """Remove shard files that no record names: of builders that died, or came second.

    One whose shard has no record may be about to get one.
    """
    for path in (cache / SHARD_FOLDER).glob("[0-9]*-*.*"):
        number = path.name.partition("-")[0]
        record = committed(cache, int(number)) if number.isdecimal() else None
        if record is not None and shard_path(cache, int(number), record) != path:
            remove(path)


def first_difference(found: Any, asked: Any, where: str) -> str | None:
    """The first place where two pieces of plain data differ, in words; None if there is none."""
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*found, *asked}):
            difference = first_difference(found.get(key), asked.get(key), f"{where}.{key}")
            if difference:
                return difference
        return None
    if (
        isinstance(found, list | tuple)
        and isinstance(asked, list | tuple)
        and len(found) == len(asked)
    ):
        pairs = enumerate(zip(found, asked, strict=True))
        differences = (first_difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)
        return next((difference for difference in differences if difference), None)
    return None if found == asked else f"{where} is {found!r} in the cache, {asked!r} now"
