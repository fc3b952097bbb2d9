"""Read every byte of a cache and hold it against its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from data.corpus import text_id
from teacher_cache.format import (
    PLAN_FILE,
    CacheError,
    FileRecord,
    read_json,
    record_path,
    shard_path,
)
from teacher_cache.plan import read_plan, read_texts
from teacher_cache.reader import CacheReader

NORM_TOLERANCE = 2e-3
"""How far from 1 a float16 row's norm may lie: rounding moves it by less than 1e-3."""

_CHUNK = 1 << 24


def verify(reader: CacheReader, advance: Callable[[int], None] = lambda _: None) -> list[str]:
    """Everything that is wrong with a cache, a line each, shard by shard; empty where all is well.

    Of every shard: its file is there and has the size and checksum of its record; the record is
    the manifest's; every id is the digest of its text; the ids are those of the record; every
    vector is finite and of unit length. Of the plan, where it was kept: it is the manifest's, and
    its files have their checksums. `advance` is told of every finished shard.
    """
    problems = list(_of_plan(reader))
    for index, expected in enumerate(reader.manifest.shards):
        problems += _of_shard(reader, index, expected)
        advance(1)
    return problems


def _of_plan(reader: CacheReader) -> Iterator[str]:
    where = reader.path / PLAN_FILE
    try:
        plan = read_plan(reader.path)
    except CacheError as error:
        yield str(error)
        return
    if plan is None:
        return
    for name in ("rows", "held_out_rows", "rows_per_shard", "ids_digest", "corpus", "counts"):
        if getattr(plan, name) != getattr(reader.manifest, name):
            yield f"{where}: its {name} differs from the manifest's"
    for index in range(len(plan.shards)):
        try:
            read_texts(reader.path, plan, index)
        except CacheError as error:
            yield str(error)


def _of_shard(reader: CacheReader, index: int, expected: FileRecord) -> Iterator[str]:
    path, record = shard_path(reader.path, index, expected), record_path(reader.path, index)
    where = f"shard {index} ({path})"
    if not path.is_file():
        yield f"{where} is missing"
        return
    try:
        if FileRecord.from_json(read_json(record), str(record)) != expected:
            yield f"{where}: its commit record differs from the manifest's"
    except (CacheError, OSError) as error:
        yield f"{where}: its commit record cannot be read ({error})"
    size = path.stat().st_size
    if size != expected.bytes:
        yield f"{where} has {size} bytes but its record says {expected.bytes}"
        return
    found = file_checksum(path)
    if found != expected.checksum:
        yield f"{where} has checksum {found} but its record says {expected.checksum}"
        return
    try:
        yield from (f"{where}: {problem}" for problem in _of_rows(reader.shard(index), expected))
    except CacheError as error:
        yield f"{where}: {error}"


def _of_rows(batch: pa.RecordBatch, expected: FileRecord) -> Iterator[str]:
    ids: list[bytes] = batch.column("id").to_pylist()
    if len(ids) != expected.rows:
        yield f"it has {len(ids)} rows but its record says {expected.rows}"
    if xxhash.xxh3_128_hexdigest(b"".join(ids)) != expected.ids_digest:
        yield "its ids are not those of its record"
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


def file_checksum(path: Path) -> str:
    """XXH3-128 of a file, in hexadecimal, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
