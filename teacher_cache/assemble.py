"""A cache from the rows of others: planned, committed and finished as a build is, with no teacher.

What `join` and `merge` share. Rows pass through one shard at a time, and a shard of a given cache
is held against its checksum before it is used: damage must not get a new checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from teacher_cache.files import remove_leftovers
from teacher_cache.finish import Build, Phase, check_new, finish, first_difference
from teacher_cache.fitted import copy_teacher
from teacher_cache.format import (
    BUILD_FILE,
    FORMAT_VERSION,
    PLAN_FILE,
    Block,
    CacheError,
    Manifest,
    Plan,
    Pooled,
    ShardFormat,
    identity_of,
    read_json,
    shard_path,
    teacher_path,
)
from teacher_cache.opening import file_checksum
from teacher_cache.plan import read_plan
from teacher_cache.plan_progress import is_unfinished
from teacher_cache.reader import CacheReader
from teacher_cache.writer import (
    Rows,
    Texts,
    committed,
    write_plan_file,
    write_record,
    write_rows,
)


class Intact:
    """The rows of a finished cache, from shards whose checksums were found right."""

    def __init__(self, reader: CacheReader) -> None:
        self.reader = reader
        self._checked: set[int] = set()

    def texts(self, rows: Sequence[int]) -> Texts:
        """Ids, texts and sources of the rows.

        Raises:
            CacheError: a shard is not what its record says.
        """
        self._check(rows)
        ids = [bytes.fromhex(id_) for id_ in self.reader.ids(rows)]
        return Texts(ids, self.reader.texts(rows), self.reader.sources(rows))

    def rows(self, rows: Sequence[int]) -> Rows:
        """The rows as they are stored, pooled states included where they are kept.

        Raises:
            CacheError: a shard is not what its record says.
        """
        reader = self.reader
        kept = reader.manifest.pooled is not None
        return Rows(
            texts=self.texts(rows),
            tokens=reader.tokens(rows),
            norms=reader.norms(rows),
            vectors=reader.vectors(rows),
            pooled=reader.pooled(rows) if kept else None,
        )

    def _check(self, rows: Sequence[int]) -> None:
        manifest = self.reader.manifest
        for number in sorted({row // manifest.rows_per_shard for row in rows} - self._checked):
            path = shard_path(self.reader.path, number, manifest.shards[number])
            found, expected = file_checksum(path), manifest.shards[number].checksum
            if found != expected:
                raise CacheError(
                    f"{path} has checksum {found} but its record says {expected}; "
                    f"see what else is wrong with: jasper-cache verify {self.reader.path}"
                )
            self._checked.add(number)


@dataclass(frozen=True, slots=True)
class Assembly:
    """A cache that is to be made of others' rows.

    `texts` and `stored` give ranges of its rows, a shard's at a time; the rest is what its plan and
    manifest will say. `teachers` are the folders of fitted teachers, by name, which are copied.
    """

    rows: int
    held_out_rows: int
    rows_per_shard: int
    blocks: tuple[Block, ...]
    pooled: Pooled | None
    corpus: Mapping[str, Any]
    counts: Mapping[str, Any]
    texts: Callable[[range], Texts]
    stored: Callable[[range], Rows]
    teachers: Mapping[str, Path]

    @property
    def shards(self) -> list[range]:
        """The rows of every shard."""
        size = self.rows_per_shard
        return [range(at, min(at + size, self.rows)) for at in range(0, self.rows, size)]


def assemble(
    out: Path, made: Assembly, *, shard_format: ShardFormat | None, phase: Phase
) -> Manifest:
    """Write a cache of others' rows, or finish one that was begun.

    Where it dies, the same call goes on from the last finished shard. A finished cache is looked
    at and its manifest returned.

    Raises:
        CacheError: the folder holds something else, or a shard to be read is damaged.
    """
    plan = _plan(out, made, phase)
    begun = _begin(out, made, plan, shard_format)
    remove_leftovers(out)
    for block in made.blocks:
        if block.teacher in made.teachers:
            copy_teacher(made.teachers[block.teacher], block, out)
    missing = [i for i in range(len(plan.shards)) if committed(out, i) is None]
    with phase("writing", sum(plan.shards[i].rows for i in missing)) as advance:
        for index in missing:
            rows = made.stored(made.shards[index])
            write_rows(out, index, rows, identity=begun.identity, shard_format=begun.shard_format)
            advance(len(rows.texts))
    manifest = finish(out, plan, begun)
    if manifest is None:
        raise CacheError(f"shards of {out} were removed meanwhile; run the same command again")
    return manifest


def refuse_own(out: Path, caches: Sequence[CacheReader]) -> None:
    """Refuse to write into one of the caches that are read."""
    for cache in caches:
        if cache.path.resolve() == out.resolve():
            raise CacheError(f"{out} is one of the caches to be read; give another folder to write")


def fitted_teachers(caches: Sequence[CacheReader]) -> dict[str, Path]:
    """The folders of teachers that were fitted on a corpus and lie in one of the caches."""
    found: dict[str, Path] = {}
    for cache in caches:
        for block in cache.manifest.blocks:
            folder = teacher_path(cache.path, block.teacher)
            if block.fitted and folder.is_dir():
                found.setdefault(block.teacher, folder)
    return found


def _plan(out: Path, made: Assembly, phase: Phase) -> Plan:
    there = read_plan(out)
    if there is None:
        check_new(out)
        if is_unfinished(out):
            raise CacheError(f"{out} is a build that is not planned yet; give another folder")
    digest = xxhash.xxh3_128()
    records = []
    with phase("planning", made.rows) as advance:
        for index, rows in enumerate(made.shards):
            texts = made.texts(rows)
            digest.update(b"".join(texts.ids))
            if there is None:
                records.append(write_plan_file(out, index, texts))
            advance(len(rows))
    plan = Plan(
        format_version=FORMAT_VERSION,
        rows=made.rows,
        held_out_rows=made.held_out_rows,
        rows_per_shard=made.rows_per_shard,
        ids_digest=digest.hexdigest(),
        corpus=made.corpus,
        counts=made.counts,
        shards=tuple(records) if there is None else there.shards,
    )
    if there is None:
        write_record(out / PLAN_FILE, plan)
    elif difference := first_difference(there.to_json(), plan.to_json(), "plan"):
        raise CacheError(f"{out} holds other rows: {difference}; write into another folder")
    return plan


def _begin(out: Path, made: Assembly, plan: Plan, shard_format: ShardFormat | None) -> Build:
    identity = identity_of(
        plan.ids_digest, plan.held_out_rows, plan.rows_per_shard, made.blocks, made.pooled
    )
    path = out / BUILD_FILE
    begun = Build(identity, made.blocks, made.pooled, shard_format or "arrow")
    if not path.exists():
        write_record(path, begun)
        return begun
    there = Build.from_json(read_json(path), str(path))
    asked = Build(identity, made.blocks, made.pooled, shard_format or there.shard_format)
    names = [", ".join(block.teacher for block in build.blocks) for build in (there, asked)]
    if names[0] != names[1]:
        raise CacheError(
            f"{out} has the teachers {names[0]}, not {names[1]}; write into another folder"
        )
    if difference := first_difference(there.to_json(), asked.to_json(), "build"):
        raise CacheError(f"{out} was begun otherwise: {difference}; write into another folder")
    return there
