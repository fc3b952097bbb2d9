"""The table in docs/cache-format.md says what each check catches: every cell of it is tried."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from forging import forge
from forging import swapped as in_other_order
from jobs import copy, corpus, lsa, made, write_corpus
from shard_files import shard_file

from teacher_cache.format import CacheError, FileRecord, plan_path, read_json, record_path
from teacher_cache.opening import file_checksum
from teacher_cache.reader import CacheReader
from teacher_cache.verify import verify

PAGE = Path(__file__).parent.parent / "docs" / "cache-format.md"
SHARD = 1
ROW = 20

Damage = Callable[[Path], object]


def table() -> dict[str, list[bool]]:
    """What is damaged → whether it is caught, by column."""
    text = PAGE.read_text(encoding="utf-8").partition("| damage |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split("|") for line in text.splitlines()[2:]]
    return {
        row[0].strip(): [cell.strip() == "✓" for cell in (*row[1:], *[""] * 4)][:4] for row in rows
    }


def edit(name: str, old: str, new: str) -> Damage:
    def damage(cache: Path) -> None:
        path = cache / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def lose(path: Callable[[Path], Path]) -> Damage:
    return lambda cache: path(cache).unlink()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def flip_in(column: str, buffer: int, bit: int = 1) -> Damage:
    """One bit in the middle of a column's buffer."""

    def damage(cache: Path) -> None:
        path = shard_file(cache, SHARD)
        data = bytearray(path.read_bytes())
        batch = pa.ipc.open_file(pa.py_buffer(bytes(data))).get_batch(0)
        raw = batch.column(column).buffers()[buffer].to_pybytes()
        # Little-endian numbers end in their highest byte; the middle of a text is a letter.
        data[data.index(raw) + len(raw) // 2 + (3 if column == "text" and buffer == 1 else 0)] ^= (
            bit
        )
        path.write_bytes(data)

    return damage


def flip_at(mark: bytes, after: int = 0) -> Damage:
    def damage(cache: Path) -> None:
        path = shard_file(cache, SHARD)
        flip(path, path.read_bytes().index(mark) + after)

    return damage


def flip_footer(cache: Path) -> None:
    path = shard_file(cache, SHARD)
    flip(path, path.stat().st_size - 12)


def vouch(cache: Path, index: int, path: Path, ids: bytes | None = None) -> None:
    """Put a file in the place of a shard, with records that match it."""
    old = FileRecord.from_json(read_json(record_path(cache, index)), "")
    was = shard_file(cache, index)
    record = replace(old, bytes=path.stat().st_size, checksum=file_checksum(path))
    record_path(cache, index).write_text(json.dumps(record.to_json()))
    if was != path:
        was.unlink(missing_ok=True)
    path.rename(shard_file(cache, index))
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["shards"][index] = record.to_json()
    (cache / "manifest.json").write_text(json.dumps(manifest))


def moved(cache: Path) -> None:
    """Two rows in the other order, of which no record tells, where no plan is kept."""
    forge(cache, SHARD, in_other_order, ids=True)
    shutil.rmtree(cache / "plan")
    (cache / "plan.json").unlink()


def rewritten(change: Callable[[pa.RecordBatch], pa.RecordBatch], match: bool = True) -> Damage:
    """Other rows in a whole file, of the same size unless records are made to match."""

    def damage(cache: Path) -> None:
        path = shard_file(cache, SHARD)
        batch = change(pa.ipc.open_file(path.read_bytes()).get_batch(0))
        other = path.with_suffix(".new") if match else path
        path.unlink()
        with pa.ipc.new_file(other, batch.schema) as sink:
            sink.write_batch(batch)
        if match:
            vouch(cache, SHARD, other)

    return damage


def swapped(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array([1, 0, *range(2, batch.num_rows)]))


def replaced(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    columns = [*batch.columns[:index], column, *batch.columns[index + 1 :]]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def retold(batch: pa.RecordBatch) -> pa.RecordBatch:
    texts = batch.column("text").to_pylist()
    return replaced(batch, "text", pa.array([*texts[:4], "another", *texts[5:]], pa.string()))


def with_vector(
    change: Callable[[np.ndarray], np.ndarray],
) -> Callable[[pa.RecordBatch], pa.RecordBatch]:  # type: ignore[type-arg]
    def changed(batch: pa.RecordBatch) -> pa.RecordBatch:
        kind = batch.column("embedding").type
        rows = np.array(batch.column("embedding").to_pylist(), np.float16)
        rows[4] = change(rows[4])
        flat = pa.array(rows.reshape(-1))
        return replaced(batch, "embedding", pa.FixedSizeListArray.from_arrays(flat, type=kind))

    return changed


def elsewhere(cache: Path) -> None:
    """Shard 2 in the place of shard 1."""
    aside = cache / "shards" / "aside"
    shutil.copy(shard_file(cache, 2), aside)
    vouch(cache, SHARD, aside)


def compressed(cache: Path) -> None:
    path = shard_file(cache, SHARD)
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    other = path.with_suffix(".new")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(other, batch.schema, options=options) as sink:
        sink.write_batch(batch)
    with other.open("ab") as stream:
        stream.write(bytes(10_000))  # as large as its vectors, at least
    vouch(cache, SHARD, other)


def linked(cache: Path) -> None:
    path = shard_file(cache, SHARD)
    path.rename(cache / "elsewhere")
    path.symlink_to(cache / "elsewhere")


def another_manifest(cache: Path) -> None:
    """Of a cache of the same texts and widths, under a teacher that was fitted on fewer."""
    texts = corpus(cache.parent)
    made(cache.parent / "other", texts, [lsa(sample=30)])
    shutil.copy(cache.parent / "other" / "manifest.json", cache / "manifest.json")
    shutil.rmtree(cache.parent / "other")


DAMAGES: dict[str, list[Damage]] = {
    "the manifest is not whole JSON, or what it says is not what its identity covers": [
        lambda cache: (cache / "manifest.json").write_text("{"),
        edit("manifest.json", '"held_out_rows": 9', '"held_out_rows": 8'),
        edit("manifest.json", '"dtype": "float32"', '"dtype": "float64"'),
        edit("manifest.json", '"rows": 56', '"rows": 57'),
    ],
    "the manifest's `corpus`, `counts`, a licence, repository or revision": [
        edit("manifest.json", '"weight": 2', '"weight": 3'),
        edit("manifest.json", '"read": ', '"read": 1'),
        edit("manifest.json", '"licence": "', '"licence": "x'),
        edit("manifest.json", '"repository": "', '"repository": "x'),
        edit("manifest.json", '"revision": null', '"revision": "x"'),
    ],
    "the manifest of another cache": [another_manifest],
    "a shard is missing, or of another size": [
        lose(lambda cache: shard_file(cache, SHARD)),
        lambda cache: shard_file(cache, SHARD).write_bytes(b""),
        lambda cache: os.truncate(shard_file(cache, SHARD), 1 << 20),
    ],
    "a shard is a link": [linked],
    "a bit of a vector": [flip_in("embedding", -1)],
    "a bit of a norm or a count of tokens": [flip_in("norms", -1), flip_in("tokens", -1)],
    "a bit of an id": [flip_in("id", 1)],
    "a bit of a text that stays valid UTF-8": [flip_in("text", 2)],
    "a bit of a text that does not, or of its offset": [
        flip_in("text", 2, 0x80),
        flip_in("text", 1, 0x40),
    ],
    "a bit of the schema's names or types, or of the file's magic": [
        flip_at(b"embedding"),
        flip_at(b"ARROW1", after=2),
    ],
    "a bit of the Arrow footer": [flip_footer],
    "two rows are swapped": [rewritten(swapped, match=False)],
    "two rows are swapped, and the records made to match": [rewritten(swapped), moved],
    "a text is another, and the records made to match": [rewritten(retold)],
    "a vector is not of unit length, and the records made to match": [
        rewritten(with_vector(lambda row: row * np.float16(1.01))),
        rewritten(with_vector(lambda row: row * np.float16(np.nan))),
    ],
    "the shard of another place, or of another cache, and the records made to match": [
        elsewhere,
        rewritten(
            lambda batch: batch.replace_schema_metadata(
                {**batch.schema.metadata, b"identity": b"another"}
            )
        ),
    ],
    "a shard's columns are compressed, and the records made to match": [compressed],
    "a commit record is missing or another": [
        lose(lambda cache: record_path(cache, SHARD)),
        edit("shards/00001.json", '"rows": 16', '"rows": 15'),
    ],
    "`plan.json` or a file of the plan is missing or another": [
        lose(lambda cache: cache / "plan.json"),
        edit("plan.json", '"rows": 56', '"rows": 57'),
        edit("plan.json", '"ids_digest": "', '"ids_digest": "0'),
        lose(lambda cache: plan_path(cache, SHARD)),
        lambda cache: flip(plan_path(cache, SHARD), 300),
    ],
    "`build.json` is another": [
        edit("build.json", '"identity": "', '"identity": "0'),
        edit("build.json", '"licence": "', '"licence": "x'),
        lambda cache: (cache / "build.json").write_text("{"),
    ],
    "a fitted teacher has lost or changed a file": [
        lose(lambda cache: cache / "teachers" / "lsa" / "vocabulary.json"),
        lambda cache: flip(cache / "teachers" / "lsa" / "model.safetensors", 500),
    ],
    "a vector of unit length that is not the teacher's, and the records made to match": [
        rewritten(with_vector(lambda row: row[::-1]))
    ],
}


@pytest.fixture(scope="module")
def whole(memory_folder: Path) -> Path:
    write_corpus(memory_folder)
    made(memory_folder / "whole", corpus(memory_folder), [lsa()])
    return memory_folder / "whole"


def caught(check: Callable[[], object]) -> bool:
    try:
        return bool(check())
    except CacheError:
        return True


def test_table_and_trials_are_of_the_same_damages() -> None:
    assert list(table()) == list(DAMAGES)


@pytest.mark.parametrize("what", DAMAGES)
def test_each_check_catches_what_the_table_says_and_nothing_else(what: str, whole: Path) -> None:
    for damage in DAMAGES[what]:
        own = copy(whole, whole.parent / "own")
        try:
            damage(own)
            found = [
                caught(lambda own=own: CacheReader(own).path is None),
                caught(lambda own=own: CacheReader(own, verify=True).path is None),
                caught(lambda own=own: CacheReader(own, check_sizes=False).vectors([ROW]) is None),
                caught(lambda own=own: verify(CacheReader(own, check_sizes=False))),
            ]
            assert found == table()[what]
        finally:
            shutil.rmtree(own)


def test_whole_cache_passes_every_check(whole: Path) -> None:
    done: list[int] = []
    reader = CacheReader(whole, verify=True, advance=done.append)
    assert done == [1] * 4
    assert reader.vectors([ROW]).any()
    assert verify(reader) == []
