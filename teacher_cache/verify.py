"""Read every byte of a cache and hold it against its records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from data.corpus import text_id
from teacher_cache.finish import Build, first_difference
from teacher_cache.fitted import fingerprint_of
from teacher_cache.format import (
    BUILD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    PLAN_FOLDER,
    Block,
    CacheError,
    FileRecord,
    Plan,
    plan_path,
    read_json,
    record_path,
    regular_file,
    shard_path,
    teacher_path,
)
from teacher_cache.opening import check_folder, file_checksum
from teacher_cache.plan import read_plan, read_texts
from teacher_cache.reader import CacheReader

NORM_TOLERANCE = 2e-3
"""How far from 1 a float16 row's norm may lie: rounding moves it by less than 1e-3."""

Part = Literal["shard", "record", "plan", "texts", "build", "teacher", "order"]
"""`order`: each shard is as its record says, and yet they are not the cache's rows."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a part of a cache, in one line; `index` counts shards, or blocks."""

    part: Part
    index: int
    line: str


def verify(reader: CacheReader, advance: Callable[[int], None] = lambda _: None) -> list[str]:
    """Everything that is wrong with a cache, a line each, shard by shard; empty where all is well.

    Of every shard: its file is there and has the size and checksum of its record; the record is
    the manifest's; every id is the digest of its text; the ids are those of the record, and all
    together those of the manifest; every vector is finite and of unit length. Of the plan, where
    it was kept: it is the manifest's, and its files have their checksums. Of what the cache was
    begun with, and of fitted teachers, where they were kept: they are the manifest's. `advance` is
    told of every finished shard.
    """
    return [damage.line for damage in find(reader, advance)]


def find(
    reader: CacheReader,
    advance: Callable[[int], None] = lambda _: None,
    shards: Collection[int] | None = None,
) -> Iterator[Damage]:
    """`verify`, part by part; of the shards, only those asked for, if any are."""
    yield from _of_plan(reader)
    yield from _of_build(reader)
    for index, block in enumerate(reader.manifest.blocks):
        if block.fitted:
            yield from _of_teacher(reader, index, block)
    ids = _Ids()
    for index, expected in enumerate(reader.manifest.shards):
        if shards is None or index in shards:
            yield from _of_shard(reader, index, expected, ids)
            advance(1)
    if ids.rows == reader.manifest.rows and ids.digest != reader.manifest.ids_digest:
        where = reader.path / MANIFEST_FILE
        yield Damage(
            "order", 0, f"{where}: the ids of its shards have the digest {ids.digest}, its own "
            f"ids_digest is {reader.manifest.ids_digest}: rows were moved or changed"
        )  # fmt: skip


class _Ids:
    """The digest of all ids, shard by shard; `rows` tells whether none was missing."""

    def __init__(self) -> None:
        self.rows = 0
        self._digest = xxhash.xxh3_128()

    def add(self, ids: list[bytes]) -> None:
        self.rows += len(ids)
        self._digest.update(b"".join(ids))

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def _of_plan(reader: CacheReader) -> Iterator[Damage]:
    where = reader.path / PLAN_FILE
    try:
        check_folder(reader.path / PLAN_FOLDER)
        plan = read_plan(reader.path)
    except CacheError as error:
        yield Damage("plan", 0, str(error))
        return
    if plan is None:
        if (reader.path / PLAN_FOLDER).exists():
            yield Damage("plan", 0, f"{where} is missing")
        return
    for name in different_fields(reader, plan):
        yield Damage("plan", 0, f"{where}: its {name} differs from the manifest's")
    for index in range(len(plan.shards)):
        try:
            read_texts(reader.path, plan, index)
        except CacheError as error:
            yield Damage("texts", index, str(error))
        except OSError as error:
            path = plan_path(reader.path, index)
            yield Damage("texts", index, f"{path} cannot be read ({error})")


def different_fields(reader: CacheReader, plan: Plan) -> list[str]:
    """The fields in which a plan is not that of the manifest."""
    names = ("rows", "held_out_rows", "rows_per_shard", "ids_digest", "corpus", "counts")
    found = [name for name in names if getattr(plan, name) != getattr(reader.manifest, name)]
    rows = [
        [(shard.rows, shard.ids_digest) for shard in of.shards] for of in (plan, reader.manifest)
    ]
    return [*found, "shards"] if rows[0] != rows[1] else found


def _of_build(reader: CacheReader) -> Iterator[Damage]:
    where = reader.path / BUILD_FILE
    try:
        begun = Build.from_json(read_json(where), str(where))
    except FileNotFoundError:
        return
    except CacheError as error:
        yield Damage("build", 0, str(error))
        return
    manifest = reader.manifest
    kind = manifest.shards[0].format
    expected = Build(manifest.identity, manifest.blocks, manifest.pooled, kind)
    difference = first_difference(begun.to_json(), expected.to_json(), "it")
    if difference:
        yield Damage("build", 0, f"{where} differs from the manifest: {difference}")


def _of_teacher(reader: CacheReader, index: int, block: Block) -> Iterator[Damage]:
    folder = teacher_path(reader.path, block.teacher)
    where = f"teacher {block.teacher!r} ({folder})"
    try:
        found = fingerprint_of(folder)
    except (CacheError, OSError) as error:
        yield Damage("teacher", index, f"{where} cannot be read ({error})")
        return
    if found not in (None, block.fingerprint):
        yield Damage(
            "teacher", index, f"{where} has fingerprint {found}, its block says {block.fingerprint}"
        )


def _of_shard(reader: CacheReader, index: int, expected: FileRecord, ids: _Ids) -> Iterator[Damage]:
    path, record = shard_path(reader.path, index, expected), record_path(reader.path, index)
    where = f"shard {index} ({path})"
    try:
        if FileRecord.from_json(read_json(record), str(record)) != expected:
            line = f"{where}: its commit record differs from the manifest's"
            yield Damage("record", index, line)
    except (CacheError, OSError) as error:
        yield Damage("record", index, f"{where}: its commit record cannot be read ({error})")
    for cause in _of_file(reader, path, index, expected, ids):
        yield Damage("shard", index, f"{where}{cause}")


def _of_file(
    reader: CacheReader, path: Path, index: int, expected: FileRecord, all_ids: _Ids
) -> Iterator[str]:
    try:
        check_folder(path.parent)
        size = regular_file(path).st_size
        if size != expected.bytes:
            yield f" has {size} bytes but its record says {expected.bytes}"
            return
        found = file_checksum(path)
        if found != expected.checksum:
            yield f" has checksum {found} but its record says {expected.checksum}"
            return
        yield from (f": {problem}" for problem in _of_rows(reader.shard(index), expected, all_ids))
    except FileNotFoundError:
        yield " is missing"
    except (CacheError, OSError) as error:
        yield f": {error}"


def _of_rows(batch: pa.RecordBatch, expected: FileRecord, all_ids: _Ids) -> Iterator[str]:
    ids: list[bytes] = batch.column("id").to_pylist()
    if xxhash.xxh3_128_hexdigest(b"".join(ids)) != expected.ids_digest:
        yield "its ids are not those of its record"
    else:
        all_ids.add(ids)
    texts = batch.column("text").to_pylist()
    wrong = [row for row, (id_, text) in enumerate(zip(ids, texts, strict=True))
             if text_id(text) != id_]  # fmt: skip
    if wrong:
        yield f"{len(wrong)} texts are not what their ids say, the first in row {wrong[0]}"
    column = batch.column("embedding")
    vectors = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
    if len(bad):
        yield f"{len(bad)} vectors are not of unit length, the first in row {bad[0]}"
    if "pooled" in batch.schema.names:
        states = batch.column("pooled").flatten().to_numpy(zero_copy_only=True)
        bad = np.flatnonzero(~np.isfinite(states.reshape(len(column), -1)).all(axis=1))
        if len(bad):
            yield f"{len(bad)} pooled states are not finite, the first in row {bad[0]}"
