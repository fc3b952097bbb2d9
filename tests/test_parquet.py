"""A cache of Parquet shards holds the same rows as one of Arrow, and is read by the same calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ROWS_PER_SHARD, bert, contents, copy, corpus, lsa, write_corpus
from shard_files import shard_file

import teacher_cache.survey
from teacher_cache import parquet
from teacher_cache.build import Options, build
from teacher_cache.format import CacheError, Manifest, ShardFormat, record_path
from teacher_cache.reader import CacheReader
from teacher_cache.repair import repair
from teacher_cache.search import row_of
from teacher_cache.summary import summarize
from teacher_cache.survey import survey
from teacher_cache.verify import verify

ORDERS: list[Any] = [range(56), [55, 0, 17, 16, 15, 31, 32], [3, 3, 48, 3], []]


def built(folder: Path, encoder: Path, shard_format: ShardFormat | None = None) -> Manifest:
    """The same cache as `conftest.cache`, but for the pooled state that is kept too."""
    write_corpus(folder)
    options = Options(token_budget=128, rows_per_shard=ROWS_PER_SHARD, shard_format=shard_format)
    teachers = [bert(encoder, keep_pooled=True), lsa()]
    manifest = build(folder / "cache", corpus(folder), teachers, options=options)
    assert manifest is not None
    return manifest


@pytest.fixture(scope="module")
def both(
    small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CacheReader, CacheReader]:
    """One cache as Arrow and as Parquet, whose windows are of 5 rows."""
    places = [tmp_path_factory.mktemp(name) for name in ("arrow", "parquet")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROWS_PER_WINDOW", 5)
        built(places[0], small_encoder)
        built(places[1], small_encoder, "parquet")
    return CacheReader(places[0] / "cache"), CacheReader(places[1] / "cache")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_WINDOW", 5)


@pytest.fixture
def own(both: tuple[CacheReader, CacheReader], tmp_path: Path) -> Path:
    """A whole cache of Parquet shards, to damage."""
    copy(both[1].path.parent, tmp_path / "own")
    return tmp_path / "own" / "cache"


@pytest.mark.parametrize("rows", ORDERS, ids=str)
def test_every_column_is_read_as_from_arrow(
    rows: Any, both: tuple[CacheReader, CacheReader]
) -> None:
    arrow, decoded = both
    for name in ("vectors", "pooled", "tokens", "norms"):
        found, expected = getattr(decoded, name)(rows), getattr(arrow, name)(rows)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for name in ("texts", "ids", "sources"):
        assert getattr(decoded, name)(rows) == getattr(arrow, name)(rows)
    found, expected = decoded.vectors(rows, ["lsa"]), arrow.vectors(rows, ["lsa"])
    np.testing.assert_array_equal(found, expected)


def test_identity_is_that_of_the_rows_whatever_the_format(
    both: tuple[CacheReader, CacheReader],
) -> None:
    arrow, decoded = both
    assert decoded.identity == arrow.identity
    assert {shard.format for shard in decoded.manifest.shards} == {"parquet"}
    assert [shard.ids_digest for shard in decoded.manifest.shards] == [
        shard.ids_digest for shard in arrow.manifest.shards
    ]
    assert verify(decoded) == []
    told, expected = summarize(survey(decoded)), summarize(survey(arrow))
    of_the_files = {"path", "bytes", "disk", "row_bytes"}
    assert {k: v for k, v in told.items() if k not in of_the_files} == {
        k: v for k, v in expected.items() if k not in of_the_files
    }


def test_shard_is_a_parquet_file_of_the_same_table(both: tuple[CacheReader, CacheReader]) -> None:
    arrow, decoded = both
    for number in range(4):
        path = shard_file(decoded.path, number)
        assert path.suffix == ".parquet"
        table = pq.read_table(path)
        assert table.equals(pa.Table.from_batches([arrow.shard(number)]))
        assert table.schema.metadata == arrow.shard(number).schema.metadata
        assert decoded.shard(number).equals(arrow.shard(number))
        some = decoded.shard(number, ["norms", "id"])
        assert some.equals(arrow.shard(number, ["norms", "id"]))
        metadata = pq.read_metadata(path)
        assert metadata.num_row_groups == -(-table.num_rows // 5)
        stored = {
            metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i)
            for i in range(metadata.num_columns)
        }
        assert stored["text"].compression == "ZSTD"
        assert stored["embedding.list.element"].compression == "UNCOMPRESSED"
        assert not any("DICTIONARY" in e for e in stored["embedding.list.element"].encodings)


def test_rows_in_any_order_decode_each_window_once_and_few_are_kept(
    both: tuple[CacheReader, CacheReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "KEPT_WINDOWS", 2)
    reader = CacheReader(both[1].path)
    rows = np.random.default_rng(0).permutation(56)
    vectors = reader.vectors(rows)
    np.testing.assert_array_equal(vectors, both[0].vectors(rows))
    known = reader._shards._windows._decoded["embedding"].cache_info()  # type: ignore[attr-defined]
    # Shards of 16, 16, 16 and 8 rows have windows of 5.
    assert (known.misses, known.currsize) == (4 + 4 + 4 + 2, 2)


def test_what_is_read_does_not_change_what_is_kept(both: tuple[CacheReader, CacheReader]) -> None:
    reader = both[1]
    before = reader.vectors([7]).copy()
    reader.vectors([7])[:] = 0
    np.testing.assert_array_equal(reader.vectors([7]), before)


def test_row_does_not_hold_its_window_in_memory(both: tuple[CacheReader, CacheReader]) -> None:
    row = both[1]._shards._windows.column(0, "embedding")[3]
    assert row.base is None
    np.testing.assert_array_equal(row, both[0].vectors([3])[0])


def test_build_goes_on_in_the_format_it_was_begun_with(
    both: tuple[CacheReader, CacheReader], own: Path, small_encoder: Path
) -> None:
    undisturbed = contents(both[1].path)
    shard_file(own, 1).unlink()
    (own / "manifest.json").unlink()
    (own / "shards" / "00000-01234567.arrow").write_bytes(b"of a builder that died")
    built(own.parent, small_encoder)
    assert contents(own) == undisturbed
    with pytest.raises(CacheError, match="has parquet shards, arrow is asked for"):
        built(own.parent, small_encoder, "arrow")
    assert contents(own) == undisturbed


def test_shards_of_both_formats_are_read_together(
    both: tuple[CacheReader, CacheReader], own: Path
) -> None:
    """As where a lost shard was written again by a program that knows the other format alone."""
    arrow = both[0]
    shard_file(own, 1).unlink()
    record = arrow.manifest.shards[1].to_json()
    record_path(own, 1).write_text(json.dumps(record))
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["shards"][1] = record
    (own / "manifest.json").write_text(json.dumps(manifest))
    shard_file(own, 1).write_bytes(shard_file(arrow.path, 1).read_bytes())
    reader = CacheReader(own)
    assert verify(reader) == []
    rows = np.random.default_rng(1).permutation(56)
    np.testing.assert_array_equal(reader.vectors(rows), arrow.vectors(rows))
    assert reader.texts(rows) == arrow.texts(rows)


def test_shard_of_another_place_is_refused(own: Path) -> None:
    shard_file(own, 0).write_bytes(shard_file(own, 1).read_bytes())
    reader = CacheReader(own, check_sizes=False)
    for read in (reader.vectors, reader.texts):
        with pytest.raises(
            CacheError, match=r"00000-\w+\.parquet cannot be read: its shard is b'1', expected"
        ):
            read([0])


@pytest.mark.parametrize("changed", ["csv", "../arrow", 3, None])
def test_record_of_no_known_format_is_refused(changed: object, own: Path) -> None:
    path = own / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][2]["format"] = changed
    path.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match=r"manifest\.json: shards: expected the format"):
        CacheReader(own)


def test_verify_names_a_flipped_byte(own: Path) -> None:
    path = shard_file(own, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (found,) = verify(CacheReader(own))
    assert found.startswith(f"shard 2 ({path}) has checksum ")


@pytest.mark.parametrize("size", [4, 7, 16])
def test_shard_of_other_row_groups_is_refused_and_not_read_as_other_rows(
    size: int, own: Path
) -> None:
    path = shard_file(own, 0)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=size, compression="none")
    reader = CacheReader(own, check_sizes=False)
    for read in (reader.vectors, reader.texts):
        with pytest.raises(CacheError, match=r"parquet cannot be read: it has row groups of \["):
            read([6])


def test_pipe_in_the_place_of_a_shard_is_not_waited_for(own: Path) -> None:
    path = shard_file(own, 1)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CacheError, match=r"parquet is a pipe, socket or device, expected a file"):
        CacheReader(own, check_sizes=False).texts([16])
    # One that is not the manifest's: repair looks which of the two is right.
    record = json.loads(record_path(own, 1).read_text())
    record_path(own, 1).write_text(json.dumps({**record, "bytes": 3}))
    with pytest.raises(CacheError, match=r"is a pipe.*: this takes the teachers; give the recipe"):
        repair(own)


def spoil_vectors(cache: Path, number: int) -> None:
    """Flip the last byte of the vectors in every window of a shard."""
    path = shard_file(cache, number)
    data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        columns = map(metadata.row_group(group).column, range(metadata.num_columns))
        (vectors,) = (c for c in columns if c.path_in_schema == "embedding.list.element")
        data[vectors.data_page_offset + vectors.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def test_to_look_for_an_id_decodes_no_vector(
    both: tuple[CacheReader, CacheReader], own: Path
) -> None:
    for number in range(4):
        spoil_vectors(own, number)
    reader = CacheReader(own)
    for row, id_ in enumerate(both[0].ids(range(56))):
        with pytest.raises(CacheError, match="cannot be read"):
            reader.vectors([row])
        assert row_of(reader, bytes.fromhex(id_)) == row


def test_survey_decodes_no_vectors_but_those_that_it_compares(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache.survey, "PAIR_ROWS", 1)
    refused = 0
    for number in range(4):
        spoilt = copy(own, tmp_path / str(number))
        spoil_vectors(spoilt, number)
        try:
            found = survey(CacheReader(spoilt))
        except CacheError:
            refused += 1
        else:
            assert (found.row_bytes["embedding"], found.row_bytes["pooled"]) == (2 * 40, 2 * 32)
    assert refused == 1


_FLIP = """
import sys
from pathlib import Path
import numpy as np
from teacher_cache import parquet
from teacher_cache.format import CacheError
from teacher_cache.reader import CacheReader

parquet.ROWS_PER_WINDOW = 5
cache, path = Path(sys.argv[1]), Path(sys.argv[2])
whole, right = path.read_bytes(), CacheReader(cache).vectors(range(16))
refused = wrong = 0
places = range(0, len(whole), 31)
for place in places:
    flipped = bytearray(whole)
    flipped[place] ^= 0x81
    path.write_bytes(flipped)
    reader = CacheReader(cache)
    try:
        wrong += not np.array_equal(reader.vectors(range(16)), right, equal_nan=True)
        reader.texts(range(16)), reader.sources(range(16)), reader.shard(0)
    except CacheError:
        refused += 1
print(refused, wrong, len(places))
"""


def test_flipped_bytes_are_refused_by_their_pages_and_never_crash(own: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FLIP, str(own), str(shard_file(own, 0))],
        stdout=subprocess.PIPE,
        check=True,
    )
    refused, wrong, tried = map(int, result.stdout.split())
    assert wrong == 0
    assert 0.7 * tried < refused <= tried
