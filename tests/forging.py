"""Shards of wrong rows, under records that vouch for them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from shard_files import shard_file

from teacher_cache.format import FileRecord, record_path
from teacher_cache.opening import file_checksum

Change = Callable[[dict[str, pa.Array]], None]
"""Changes the columns of a shard, by name."""


def change_manifest(own: Path, change: Callable[[dict[str, list[object]]], None]) -> None:
    path = own / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def forge(own: Path, number: int, change: Change, *, ids: bool = False) -> None:
    """Write a shard with other rows, and records that vouch for it: as a bug would.

    With `ids` they vouch for the order of its ids as well.
    """
    path = shard_file(own, number)
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    columns = dict(zip(table.column_names, table.combine_chunks().columns, strict=True))
    columns = {name: column.combine_chunks() for name, column in columns.items()}
    change(columns)
    forged = pa.Table.from_arrays(list(columns.values()), schema=table.schema)
    path.unlink()
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(forged)
    old = FileRecord.from_json(json.loads(record_path(own, number).read_text()), "")
    facts: dict[str, Any] = {"bytes": path.stat().st_size, "checksum": file_checksum(path)}
    if ids:
        facts["ids_digest"] = xxhash.xxh3_128_hexdigest(b"".join(columns["id"].to_pylist()))
    record = replace(old, **facts).to_json()
    record_path(own, number).write_text(json.dumps(record))
    path.rename(shard_file(own, number))

    def vouch(data: dict[str, list[object]]) -> None:
        data["shards"][number] = record

    change_manifest(own, vouch)


def scaled(row: int, factor: float) -> Change:
    def change(columns: dict[str, pa.Array]) -> None:
        kind = columns["embedding"].type
        vectors = np.array(columns["embedding"].to_pylist(), np.float16)
        vectors[row] *= np.float16(factor)
        flat = pa.array(vectors.reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=kind)

    return change


def swapped(columns: dict[str, pa.Array]) -> None:
    """The first two rows in the other order."""
    for name, column in columns.items():
        columns[name] = column.take(pa.array([1, 0, *range(2, len(column))]))


def retold(columns: dict[str, pa.Array]) -> None:
    """Another text in row 3."""
    texts = columns["text"].to_pylist()
    columns["text"] = pa.array([*texts[:3], "another", *texts[4:]])
