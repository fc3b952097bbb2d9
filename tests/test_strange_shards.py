"""Arrow files that a stranger put in the place of a shard or of a plan's texts."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from jobs import copy
from shard_files import shard_file
from test_strangers import opened_read_and_verified, signed

from teacher_cache.format import CacheError, FileRecord, plan_path, read_json, record_path
from teacher_cache.opening import file_checksum
from teacher_cache.reader import CacheReader
from teacher_cache.verify import verify


@pytest.fixture
def own(cache: CacheReader, tmp_path: Path) -> Path:
    """A whole cache, for a stranger to change."""
    return copy(cache.path, tmp_path / "own")


def forged(own: Path, change: Callable[[pa.RecordBatch, Path], None]) -> None:
    """Put another file in the place of shard 1, and records that vouch for it."""
    path = shard_file(own, 1)
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    path.unlink()
    change(batch, path)
    old = FileRecord.from_json(read_json(record_path(own, 1)), "")
    record = replace(old, bytes=path.stat().st_size, checksum=file_checksum(path)).to_json()
    record_path(own, 1).write_text(json.dumps(record))
    path.rename(shard_file(own, 1))
    signed(own, lambda data: data["shards"].__setitem__(1, record))


def write(path: Path, batches: list[pa.RecordBatch], **options: Any) -> None:
    with pa.ipc.new_file(
        path, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as sink:
        for batch in batches:
            sink.write_batch(batch)


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    schema = batch.schema.set(index, pa.field(name, column.type, nullable=True))
    columns = [*batch.columns[:index], column, *batch.columns[index + 1 :]]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def extension(batch: pa.RecordBatch, path: Path) -> None:
    ids = pa.ExtensionArray.from_storage(pa.uuid(), batch.column("id"))
    write(path, [with_column(batch, "id", ids)])


def dictionary(batch: pa.RecordBatch, path: Path) -> None:
    write(path, [with_column(batch, "source", batch.column("source").dictionary_encode())])


def reordered(batch: pa.RecordBatch, path: Path) -> None:
    write(path, [batch.select(batch.schema.names[::-1])])


def nested(batch: pa.RecordBatch, path: Path) -> None:
    column: pa.Array = pa.nulls(len(batch), pa.int8())
    for _ in range(40):
        column = pa.ListArray.from_arrays(pa.array(range(len(batch) + 1), pa.int32()), column)
    write(path, [with_column(batch, "text", column)])


def packed(batch: pa.RecordBatch, path: Path) -> None:
    write(path, [batch], compression="zstd")


def bomb(batch: pa.RecordBatch, path: Path) -> None:
    """Every compressed buffer says that it unpacks to an exabyte."""
    write(path, [batch], compression="zstd")
    data = bytearray(path.read_bytes())
    frames = [
        place - 8 for place in range(8, len(data)) if data.startswith(b"\x28\xb5\x2f\xfd", place)
    ]
    assert frames
    for place in frames:
        struct.pack_into("<q", data, place, 1 << 60)
    path.write_bytes(data)


def holes(batch: pa.RecordBatch, path: Path) -> None:
    """A null in a column that has none by its schema."""
    texts = batch.column("text").to_pylist()
    index = batch.schema.get_field_index("text")
    columns = [*batch.columns]
    columns[index] = pa.array([None, *texts[1:]], pa.string())
    write(path, [pa.RecordBatch.from_arrays(columns, schema=batch.schema)])


def few(batch: pa.RecordBatch, path: Path) -> None:
    write(path, [batch.slice(0, 8), batch.slice(8)])


def nothing(batch: pa.RecordBatch, path: Path) -> None:
    write(path, [batch][:1])
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extension, "other columns"),
        (dictionary, "other columns"),
        (reordered, "other columns"),
        (nested, "other columns"),
        (packed, "its columns are compressed"),
        (bomb, "its columns are compressed"),
        (holes, "a value is missing"),
        (few, "it has 8 rows, its record says 16"),
        (nothing, "it is no Arrow file"),
    ],
)
def test_arrow_file_that_is_no_shard_is_refused(
    change: Callable[[pa.RecordBatch, Path], None], message: str, own: Path
) -> None:
    forged(own, change)
    before = pa.total_allocated_bytes()
    reader = CacheReader(own)
    with pytest.raises(CacheError, match=rf"00001-\w+\.arrow cannot be read: .*{message}"):
        reader.vectors([20])
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert any(message in line for line in verify(reader))


def test_plan_that_unpacks_to_too_much_is_refused(own: Path) -> None:
    path = plan_path(own, 1)
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    bomb(batch, path)
    plan = json.loads((own / "plan.json").read_text())
    plan["shards"][1].update(bytes=path.stat().st_size, checksum=file_checksum(path))
    (own / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(
        CacheError, match=r"plan/00001\.arrow cannot be read: its columns unpack to"
    ):
        opened_read_and_verified(own)
