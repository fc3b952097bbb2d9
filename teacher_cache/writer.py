"""One crash-safe commit: check, write aside, sync, rename, then the record that makes it exist."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from teacher_cache.encoders.protocol import Encoded, FloatArray
from teacher_cache.files import (
    Written,
    commit_bytes,
    commit_file,
    commit_first,
    commit_named,
    commit_unless,
    remove,
    remove_if,
)
from teacher_cache.format import (
    FORMAT_VERSION,
    PLAN_SCHEMA,
    SHARD_FOLDER,
    VECTOR_DTYPE,
    CacheError,
    FileRecord,
    Record,
    ShardFormat,
    plan_path,
    read_json,
    record_path,
    shard_path,
    shard_schema,
)

LARGEST_TEXTS = 2**31 - 1
"""Bytes that the texts of one file may have together: Arrow's `utf8` counts them in int32."""

_ROWS_AT_ONCE = 16
"""So few stay in the processor's caches between the product and its rounding."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one shard, column by column."""

    ids: Sequence[bytes]
    texts: Sequence[str]
    sources: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids_digest(self) -> str:
        """XXH3-128 of the ids, one after the other."""
        return xxhash.xxh3_128_hexdigest(b"".join(self.ids))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a shard as they are stored, column by column; k teachers, `width` in all.

    `tokens` [n, k], `norms` [n, k], `vectors` [n, width] of unit length, `pooled` [n, H] or None.
    """

    texts: Texts
    tokens: NDArray[np.int32]
    norms: FloatArray
    vectors: NDArray[np.float16]
    pooled: NDArray[np.float16] | None = None


def json_of(record: Record) -> bytes:
    """A record as it is written: readable, with a stable order of keys."""
    text = json.dumps(record.to_json(), indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def write_record(path: Path, record: Record) -> None:
    """Commit a JSON record."""
    commit_bytes(path, json_of(record))


def write_first(path: Path, record: Record) -> bool:
    """`write_record` unless there is one: the first of several builders wins, others get False."""
    return commit_first(path, json_of(record))


def write_plan_file(cache: Path, index: int, texts: Texts) -> FileRecord:
    """Commit the texts of one shard, compressed: the source a damaged shard is rebuilt from."""
    written = commit_file(plan_path(cache, index), lambda stream: _write_texts(stream, texts))
    return _record_of(texts, written)


def plan_shard(
    cache: Path, index: int, texts: Texts, planned: Callable[[], bool]
) -> FileRecord | None:
    """`write_plan_file`, unless the cache is `planned` by then: None, and nothing was changed."""
    path = plan_path(cache, index)
    written = commit_unless(planned, path, lambda stream: _write_texts(stream, texts))
    return None if written is None else _record_of(texts, written)


def _record_of(texts: Texts, written: Written) -> FileRecord:
    return FileRecord(len(texts), written.bytes, written.checksum, texts.ids_digest)


def _write_texts(stream: BinaryIO, texts: Texts) -> None:
    _write_table(stream, pa.Table.from_arrays(_columns(texts), schema=PLAN_SCHEMA), "zstd")


def _columns(texts: Texts) -> list[pa.Array]:
    """Ids, texts and sources as Arrow has them."""
    sizes = [len(text.encode()) for text in texts.texts]
    if sum(sizes) > LARGEST_TEXTS:
        longest = texts.texts[sizes.index(max(sizes))]
        raise CacheError(
            f"{len(texts)} texts for one file have {sum(sizes):,} bytes, expected at most "
            f"{LARGEST_TEXTS:,}; the longest begins {longest[:60]!r}: cut such documents, by hand "
            "or by the recipe's `cut` of their source"
        )
    return [
        pa.array(texts.ids, pa.binary(16)),
        pa.array(texts.texts, pa.string()),
        pa.array(texts.sources, pa.string()),
    ]


def write_shard(
    cache: Path,
    index: int,
    *,
    identity: str,
    texts: Texts,
    blocks: Sequence[tuple[str, Encoded]],
    shard_format: ShardFormat = "arrow",
) -> FileRecord:
    """Commit one shard and then its record, after which it exists.

    `blocks` are each teacher's name and raw vectors, in the order of the manifest's blocks. Each
    block is L2-normalised, the blocks are concatenated, and the whole is normalised (paper,
    section 2: with k teachers, every block weighs 1/√k). The pooled states that came with one of
    them become one more column.

    Raises:
        CacheError: a vector is missing, not finite or zero; nothing was written.
    """
    norms = np.stack([_norms(texts, name, encoded.vectors) for name, encoded in blocks], axis=1)
    rows = Rows(
        texts=texts,
        tokens=np.stack([encoded.tokens for _, encoded in blocks], axis=1).astype(np.int32),
        norms=norms,
        vectors=concatenate([encoded.vectors for _, encoded in blocks], norms),
        pooled=_pooled(texts, blocks),
    )
    return write_rows(cache, index, rows, identity=identity, shard_format=shard_format)


def write_rows(
    cache: Path, index: int, rows: Rows, *, identity: str, shard_format: ShardFormat = "arrow"
) -> FileRecord:
    """Commit one shard of rows as they are to be stored, and then its record.

    Where another builder committed the shard meanwhile, its record is given and this one's file
    is dropped: two runs of a model need not agree in the last bit.
    """
    table = _table(index, rows, identity)

    def write(stream: BinaryIO) -> None:
        if shard_format == "parquet":
            from teacher_cache import parquet

            parquet.write(stream, table)
        else:
            _write_table(stream, table)

    def record_of(written: Written) -> FileRecord:
        digest = rows.texts.ids_digest
        return FileRecord(len(rows.texts), written.bytes, written.checksum, digest, shard_format)

    written = commit_named(
        cache / SHARD_FOLDER,
        f"{index:05d}.{shard_format}",
        write,
        lambda written: shard_path(cache, index, record_of(written)),
    )
    record = record_of(written)
    while not write_first(record_path(cache, index), record):
        other = committed(cache, index)
        if other is not None:
            if shard_path(cache, index, other) != shard_path(cache, index, record):
                remove(shard_path(cache, index, record))
            return other
        # The record there is of a lost file. Another builder may be replacing it as well.
        remove_if(record_path(cache, index), lambda aside: _whole(cache, index, aside) is None)
    return record


def _table(index: int, rows: Rows, identity: str) -> pa.Table:
    schema = shard_schema(
        rows.vectors.shape[1],
        rows.norms.shape[1],
        None if rows.pooled is None else rows.pooled.shape[1],
        {
            "format_version": str(FORMAT_VERSION),
            "identity": identity,
            "shard": str(index),
            "ids_digest": rows.texts.ids_digest,
        },
    )
    columns = [
        *_columns(rows.texts),
        _fixed_size_list(rows.tokens, schema.field("tokens").type),
        _fixed_size_list(rows.norms, schema.field("norms").type),
        _fixed_size_list(rows.vectors, schema.field("embedding").type),
    ]
    if rows.pooled is not None:
        columns.append(_fixed_size_list(rows.pooled, schema.field("pooled").type))
    return pa.Table.from_arrays(columns, schema=schema)


def committed(cache: Path, index: int) -> FileRecord | None:
    """The record of a shard, None unless it and a file of the recorded size are there.

    A record that cannot be read is none: the shard is encoded again.
    """
    return _whole(cache, index, record_path(cache, index))


def _whole(cache: Path, index: int, place: Path) -> FileRecord | None:
    try:
        record = FileRecord.from_json(read_json(place), str(place))
        size = shard_path(cache, index, record).stat().st_size
    except (CacheError, FileNotFoundError):
        return None
    return record if size == record.bytes else None


def concatenate(vectors: Sequence[FloatArray], norms: FloatArray) -> NDArray[np.float16]:
    """The target of the paper: norm(norm(a) ‖ norm(b) ‖ …), as float16 [n, sum of widths].

    `norms` [n, k] are the L2 norms of the k blocks' raw rows.
    """
    share = 1 / np.sqrt(len(vectors))
    rows = np.empty((len(norms), sum(block.shape[1] for block in vectors)), np.float16)
    offset = 0
    for column, block in enumerate(vectors):
        scale = (share / norms[:, column, None]).astype(np.float32)
        target = rows[:, offset : offset + block.shape[1]]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            target[part] = block[part] * scale[part]
        offset += block.shape[1]
    return rows


def _norms(texts: Texts, teacher: str, vectors: FloatArray) -> FloatArray:
    if len(vectors) != len(texts):
        raise CacheError(f"teacher {teacher}: {len(vectors)} vectors for {len(texts)} texts")
    # In float64: the square of a large float32 activation would overflow.
    squares: NDArray[np.float64] = np.einsum("nw,nw->n", vectors, vectors, dtype=np.float64)
    norms = np.sqrt(squares)
    # Outside of these, float32 has no norm to divide by: the row would come out as 0 or infinite.
    limits = np.finfo(np.float32)
    bad = np.flatnonzero(~((norms >= limits.tiny) & (norms <= limits.max)))
    if len(bad):
        first = int(bad[0])
        what = "zero" if norms[first] < limits.tiny else "not finite"
        raise CacheError(
            f"teacher {teacher}: the vector of text {texts.ids[first].hex()} is {what} "
            f"({len(bad)} such in this shard); the text begins {texts.texts[first][:60]!r}; "
            "nothing of this shard was written"
        )
    return norms.astype(np.float32)


def _fixed_size_list(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _pooled(texts: Texts, blocks: Sequence[tuple[str, Encoded]]) -> NDArray[np.float16] | None:
    """The pooled states that came with one of the blocks, as float16 [n, width]."""
    for name, encoded in blocks:
        if encoded.pooled is None:
            continue
        with np.errstate(over="ignore"):  # what overflows float16 is refused below
            states = encoded.pooled.astype(np.float16)
        bad = np.flatnonzero(~np.isfinite(states).all(axis=1))
        if len(bad):
            raise CacheError(
                f"teacher {name}: the pooled state of text {texts.ids[bad[0]].hex()} does not fit "
                f"{VECTOR_DTYPE} ({len(bad)} such in this shard); build without keep_pooled; "
                "nothing of this shard was written"
            )
        return states
    return None


def _write_table(stream: BinaryIO, table: pa.Table, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    # One record batch, so that every column of a shard is one contiguous run of bytes.
    (batch,) = table.combine_chunks().to_batches()
    with pa.ipc.new_file(pa.PythonFile(stream, "w"), table.schema, options=options) as sink:
        sink.write_batch(batch)
