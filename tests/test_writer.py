"""One shard: what is checked before a byte is written, and what the columns then hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from jobs import assert_rounded, joined
from numpy.typing import NDArray

from data.corpus import text_id
from teacher_cache import writer
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.format import CacheError, FileRecord, read_json, record_path
from teacher_cache.opening import file_checksum
from teacher_cache.writer import Texts, write_plan_file, write_shard

WORDS = ["one", "two", "three", "four and more", "Fünf 🥁"]
TEXTS = Texts([text_id(word) for word in WORDS], WORDS, ["web"] * 4 + ["asked"])
LENGTHS = [1, 30, 1e-30, 1e30, 0.5]


def encoded(vectors: NDArray[np.float32]) -> Encoded:
    return Encoded(vectors, np.arange(len(vectors), dtype=np.int32))


def raw(width: int, lengths: list[float], seed: int = 0) -> NDArray[np.float32]:
    """Random rows of these lengths."""
    rows = np.random.default_rng(seed).normal(size=(len(lengths), width))
    rows *= np.array(lengths)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def write(folder: Path, *vectors: NDArray[np.float32]) -> FileRecord:
    blocks = [(f"teacher-{i}", encoded(rows)) for i, rows in enumerate(vectors)]
    return write_shard(folder, 3, identity="i", texts=TEXTS, blocks=blocks)


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_shard_holds_unit_rows_and_what_they_were_before(teachers: int, tmp_path: Path) -> None:
    vectors = [raw(5 + i, LENGTHS, seed=i) for i in range(teachers)]
    record = write(tmp_path, *vectors)
    path = tmp_path / "shards" / f"00003-{record.checksum[:8]}.arrow"
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == 1
        batch = reader.get_batch(0)
    width = sum(5 + i for i in range(teachers))
    rows = batch.column("embedding").flatten().to_numpy().reshape(5, width)
    assert_rounded(rows, joined(*vectors))
    norms = batch.column("norms").flatten().to_numpy().reshape(5, teachers)
    np.testing.assert_allclose(norms, np.repeat(np.array(LENGTHS)[:, None], teachers, 1), rtol=1e-6)
    assert batch.column("tokens").to_pylist() == [[i] * teachers for i in range(5)]
    assert batch.column("text").to_pylist() == WORDS
    assert batch.column("id").to_pylist() == list(TEXTS.ids)
    assert record == FileRecord(5, path.stat().st_size, file_checksum(path), TEXTS.ids_digest)
    assert FileRecord.from_json(read_json(record_path(tmp_path, 3)), "") == record
    assert batch.schema.metadata == {
        b"format_version": b"2",
        b"identity": b"i",
        b"shard": b"3",
        b"ids_digest": TEXTS.ids_digest.encode(),
    }


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (0, "zero"),
        (1e-40, "zero"),
        (np.nan, "not finite"),
        (-np.inf, "not finite"),
        (3e38, "not finite"),
    ],
)
def test_row_without_a_direction_is_refused_before_anything_is_written(
    value: float, what: str, tmp_path: Path
) -> None:
    good, bad = raw(4, [1, 1, 1, 1, 1]), raw(6, [1, 1, 1, 1, 1])
    bad[2] = value
    message = rf"teacher teacher-1: the vector of text {TEXTS.ids[2].hex()} is {what} \(1 such"
    with pytest.raises(CacheError, match=message):
        write(tmp_path, good, bad)
    assert not list(tmp_path.iterdir())


def test_teacher_that_gives_another_number_of_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="teacher teacher-0: 4 vectors for 5 texts"):
        write(tmp_path, raw(4, [1, 1, 1, 1]))
    assert not list(tmp_path.iterdir())


def test_more_text_than_a_column_holds_is_refused_by_its_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(len(word.encode()) for word in WORDS)
    monkeypatch.setattr(writer, "LARGEST_TEXTS", size - 1)
    message = f"5 texts for one file have {size} bytes, expected at most .*begins 'four and more'"
    for refused in (
        lambda: write_plan_file(tmp_path, 3, TEXTS),
        lambda: write(tmp_path, raw(5, LENGTHS)),
    ):
        with pytest.raises(CacheError, match=message):
            refused()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(writer, "LARGEST_TEXTS", size)
    assert write_plan_file(tmp_path, 3, TEXTS).rows == write(tmp_path, raw(5, LENGTHS)).rows == 5
