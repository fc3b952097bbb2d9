"""A cache as a folder of Parquet files with a dataset card: for programs that know no cache.

Vectors leave as float32, which every reader of Parquet knows; the half of their bits that float16
never filled costs nothing, since bytes are stored by their place and compressed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.assemble import Intact
from teacher_cache.card import FACTS_FILE, dataset_card
from teacher_cache.files import commit_bytes, commit_file, remove_leftovers
from teacher_cache.finish import Phase, silent
from teacher_cache.format import CacheError, canonical_json, checksum
from teacher_cache.reader import CacheReader

DATA_FOLDER = "data"
SPLITS = ("train", "held_out")

_ROWS_PER_GROUP = 1024


@dataclass(frozen=True, slots=True)
class Column:
    """A column of vectors: of which teachers, in which order."""

    name: str
    teachers: tuple[str, ...]
    width: int


@dataclass(frozen=True, slots=True)
class File:
    """A file of an export, by its path in it, and the rows that it holds."""

    path: str
    rows: range


def export(
    reader: CacheReader,
    out: Path,
    *,
    teachers: Sequence[str] | None = None,
    per_teacher: bool = False,
    phase: Phase = silent,
) -> int:
    """Write `out/README.md` and `out/data/SPLIT-NNNNN-of-NNNNN.parquet`; gives their bytes.

    Columns are `id` (hexadecimal), `text`, `source`, and `embedding`: the unit vectors of all
    teachers or of some (`CacheReader.vectors`). With `per_teacher` each teacher has a column of
    unit vectors of its own instead. The folder appears when all of it is there; until then it lies
    beside, from where the same call goes on after a crash. One shard is in memory.

    Raises:
        CacheError: `out` is no empty folder or cannot be replaced by another, no such teacher, or a
            shard is damaged.
    """
    columns = _columns(reader, teachers, per_teacher)
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CacheError(f"{out} is not an empty folder; give another one to export to")
    if out == Path.cwd() or out.is_mount():
        raise CacheError(
            f"{out} is the working folder or a mount point, and the finished export takes the "
            f"place of a folder; give one inside of it: {out / 'vectors'}"
        )
    files = _files(reader)
    aside = out.parent / f".{out.name}.unfinished"
    _prepare(aside, _facts(reader, columns))
    missing = [file for file in files if not (aside / file.path).exists()]
    intact = Intact(reader)
    with phase("exporting", sum(len(file.rows) for file in missing)) as advance:
        for file in missing:
            table = _table(intact, columns, file.rows)
            commit_file(aside / file.path, partial(_write, table))
            advance(len(file.rows))
    card = dataset_card(
        reader.manifest,
        columns={column.name: column.teachers for column in columns},
        splits=[split for split in SPLITS if _rows(reader, split)],
    )
    commit_bytes(aside / "README.md", card.encode())
    try:
        aside.rename(out)
    except OSError as error:
        raise CacheError(
            f"{aside} is finished but cannot be renamed to {out}: {error.strerror or error}; "
            "give it that name when nothing is in the way"
        ) from None
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _columns(
    reader: CacheReader, teachers: Sequence[str] | None, per_teacher: bool
) -> list[Column]:
    blocks = reader.blocks(teachers)
    if not per_teacher:
        names = tuple(block.teacher for block in blocks)
        return [Column("embedding", names, sum(block.width for block in blocks))]
    columns = [
        Column("embedding_" + re.sub(r"\W", "_", block.teacher), (block.teacher,), block.width)
        for block in blocks
    ]
    names = tuple(column.name for column in columns)
    if len(set(names)) < len(names):
        raise CacheError(
            f"{reader.path}: of {', '.join(block.teacher for block in blocks)} two would share a "
            "column's name; export them one by one with --teachers"
        )
    return columns


def _rows(reader: CacheReader, split: str) -> range:
    return reader.train_rows if split == "train" else reader.held_out_rows


def _files(reader: CacheReader) -> list[File]:
    size = reader.manifest.rows_per_shard
    files = []
    for split in SPLITS:
        rows = _rows(reader, split)
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        files += [
            File(f"{DATA_FOLDER}/{split}-{i:05d}-of-{len(parts):05d}.parquet", part)
            for i, part in enumerate(parts)
        ]
    return files


def _facts(reader: CacheReader, columns: Sequence[Column]) -> dict[str, Any]:
    """What is exported: two exports with the same facts have the same files."""
    manifest = reader.manifest.to_json()
    shards = manifest.pop("shards")
    return {
        "columns": {column.name: list(column.teachers) for column in columns},
        "manifest": manifest,
        "shards": checksum(canonical_json(shards).encode()),
    }


def _prepare(aside: Path, facts: dict[str, Any]) -> None:
    """Keep what an export with these facts has left there, and nothing else."""
    data = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    place = aside / FACTS_FILE
    if not place.exists() or place.read_bytes() != data:
        shutil.rmtree(aside / DATA_FOLDER, ignore_errors=True)
        commit_bytes(place, data)
    remove_leftovers(aside)


def _table(intact: Intact, columns: Sequence[Column], rows: range) -> pa.Table:
    texts = intact.texts(rows)
    arrays = {
        "id": pa.array([id_.hex() for id_ in texts.ids]),
        "text": pa.array(texts.texts),
        "source": pa.array(texts.sources),
    }
    for column in columns:
        vectors = intact.reader.vectors(rows, column.teachers).astype(np.float32)
        kind = pa.list_(pa.float32(), column.width)
        flat = pa.array(vectors.reshape(-1))
        arrays[column.name] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    return pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))


def _write(table: pa.Table, stream: BinaryIO) -> None:
    vectors = [name for name in table.column_names if name.startswith("embedding")]
    pq.write_table(
        table,
        pa.PythonFile(stream, "w"),
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=["source"],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in vectors},
        write_statistics=False,
        write_page_checksum=True,
    )
