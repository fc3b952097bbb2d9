"""Rows in any order, one teacher or all, read where they lie; what is no cache is refused."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from jobs import assert_rounded, copy, corpus, in_cache_order, lsa, made, unit, write_corpus
from numpy.typing import NDArray
from shard_files import shard_file

from teacher_cache.format import CacheError
from teacher_cache.reader import CacheReader


def stored(cache: CacheReader) -> NDArray[np.float16]:
    """All vectors, read by Arrow alone."""
    shards = sorted((cache.path / "shards").glob("*.arrow"))
    tables = [pa.ipc.open_file(path.read_bytes()).read_all() for path in shards]
    rows = pa.concat_tables(tables).column("embedding").to_pylist()
    return np.asarray(rows, np.float16)


@pytest.fixture
def own(cache: CacheReader, tmp_path: Path) -> Path:
    """A whole cache, to break."""
    return copy(cache.path, tmp_path / "own")


@pytest.mark.parametrize(
    "rows",
    [
        [0],
        [55, 0, 17, 16, 15, 31, 32],
        [3, 3, 3, 48, 3],
        (1, 2),
        range(10, 40),
        range(55, -1, -7),
        np.arange(56)[::-1],
        np.array([5, 6], np.uint8),
        [np.int64(7), 8],
        [],
        np.empty(0, np.int64),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_rows_come_in_the_order_asked_and_as_often(rows: Any, cache: CacheReader) -> None:
    places = [int(row) for row in rows]
    vectors = cache.vectors(rows)
    assert vectors.dtype == np.float16
    assert vectors.shape == (len(places), 40)
    np.testing.assert_array_equal(vectors, stored(cache)[places])
    texts = in_cache_order(corpus(cache.path.parent))
    assert cache.texts(rows) == [texts[row].text for row in places]
    assert cache.ids(rows) == [texts[row].id.hex() for row in places]
    assert cache.sources(rows) == [texts[row].source for row in places]


def test_rows_may_come_from_a_generator(cache: CacheReader) -> None:
    generated = cache.vectors(row for row in (50, 3))
    np.testing.assert_array_equal(generated, cache.vectors([50, 3]))


@pytest.mark.parametrize("rows", [[56], [0, -1], [10**12], range(50, 57), np.array([2**40])])
def test_row_outside_is_an_index_error(rows: Any, cache: CacheReader) -> None:
    for read in (cache.vectors, cache.texts, cache.ids, cache.sources):
        with pytest.raises(IndexError, match="has rows 0 to 55, asked for"):
            read(rows)


@pytest.mark.parametrize("rows", [[0.0], [True, False], ["1"], [[0, 1]], [None], {1, 2}])
def test_what_is_no_list_of_row_numbers_is_an_index_error(rows: Any, cache: CacheReader) -> None:
    with pytest.raises(IndexError, match="expected a list of row numbers"):
        cache.vectors(rows)


@pytest.mark.parametrize("teachers", [["bert"], ["lsa"], ["lsa", "bert"], ("bert", "lsa"), None])
def test_some_teachers_are_cut_out_and_normalised_again(
    teachers: list[str] | None, cache: CacheReader
) -> None:
    columns = {"bert": slice(0, 32), "lsa": slice(32, 40)}
    rows = [40, 2, 2, 55]
    blocks = [stored(cache)[rows, columns[name]] for name in teachers or columns]
    exact = unit(np.concatenate(blocks, axis=1))
    vectors = cache.vectors(rows, teachers)
    assert_rounded(vectors, unit(exact))
    assert cache.width(teachers) == vectors.shape[1]
    assert cache.vectors([], teachers).shape == (0, vectors.shape[1])
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)
    assert [block.teacher for block in cache.blocks(teachers)] == list(teachers or columns)


@pytest.mark.parametrize("teachers", [["brt"], ["bert", "bert"], [], ["bert", "lsa", "x"]])
def test_teachers_that_are_not_there_or_come_twice_are_refused(
    teachers: list[str], cache: CacheReader
) -> None:
    with pytest.raises(CacheError, match="holds the teachers bert, lsa; expected some of them"):
        cache.vectors([0], teachers)


def test_whole_rows_are_copies_and_the_file_stays(cache: CacheReader) -> None:
    vectors = cache.vectors([0])
    vectors[:] = 0
    assert cache.vectors([0]).any()
    with pytest.raises((TypeError, ValueError)):
        cache.shard(0).column("embedding").flatten().to_numpy()[0] = 0


def test_held_out_rows_are_the_last(cache: CacheReader) -> None:
    assert (cache.train_rows, cache.held_out_rows) == (range(47), range(47, 56))
    assert len(cache) == 56


def replace_by_holes(cache: Path, shards: Sequence[int]) -> None:
    """Shards become files of the same size that hold no data at all."""
    for path in (shard_file(cache, number) for number in shards):
        size = path.stat().st_size
        path.unlink()
        with path.open("wb") as stream:
            stream.truncate(size)


def test_opening_reads_no_vectors_and_reading_then_fails_clearly(own: Path) -> None:
    replace_by_holes(own, range(4))
    reader = CacheReader(own)
    assert (len(reader), reader.teachers) == (56, ("bert", "lsa"))
    for read in (reader.vectors, reader.texts):
        with pytest.raises(CacheError, match=r"00001-\w+\.arrow cannot be read: .* verify"):
            read([20])


def test_shards_are_opened_when_a_row_of_theirs_is_read(own: Path) -> None:
    replace_by_holes(own, [0, 3])
    reader = CacheReader(own)
    assert reader.vectors([16, 47]).any()
    with pytest.raises(CacheError, match=r"00003-\w+\.arrow"):
        reader.vectors([16, 48])


def test_rows_are_mapped_and_no_file_is_held_open(own: Path) -> None:
    reader = CacheReader(own)
    shards = {str(shard_file(own, number)) for number in range(4)}
    assert not shards & mapped()
    reader.vectors(range(56))
    assert shards <= mapped()
    handles = Path("/proc/self/fd").iterdir()
    assert not shards & {str(handle.readlink()) for handle in handles if handle.is_symlink()}
    assert reader.shard(0) is reader.shard(0)


def mapped() -> set[str]:
    """The files mapped into the memory of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if line.count(" /")}


def test_folder_that_is_no_cache_is_told_how_to_become_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CacheError, match=f"{path} is no cache.*jasper-cache build --recipe"):
            CacheReader(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file is no cache"):
        CacheReader(tmp_path / "file")


def test_unfinished_cache_is_told_from_none(own: Path) -> None:
    (own / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"is unfinished: .*finish it with the jasper-cache build"):
        CacheReader(own)


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [lose, cut])
def test_missing_or_short_shard_is_named_at_once(damage: Callable[[Path], None], own: Path) -> None:
    damage(shard_file(own, 2))
    with pytest.raises(CacheError, match=r"00002-\w+\.arrow has .*, its record says \d+;"):
        CacheReader(own)
    reader = CacheReader(own, check_sizes=False)
    assert reader.texts([0])
    with pytest.raises(CacheError, match=r"00002-\w+\.arrow cannot be read"):
        reader.vectors([40])


def test_shard_of_another_place_is_refused(own: Path) -> None:
    shutil.copy(shard_file(own, 1), shard_file(own, 0))
    reader = CacheReader(own, check_sizes=False)
    with pytest.raises(
        CacheError, match=r"00000-\w+\.arrow cannot be read: its shard is b'1', expected b'0'"
    ):
        reader.vectors([0])


def test_shard_of_another_cache_is_refused(own: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    made(tmp_path / "other", corpus(tmp_path), [lsa()])
    shutil.copy(shard_file(tmp_path / "other", 1), shard_file(own, 1))
    reader = CacheReader(own, check_sizes=False)
    with pytest.raises(
        CacheError, match=r"00001-\w+\.arrow cannot be read: its identity is .* belongs elsewhere"
    ):
        reader.texts([20])


@pytest.mark.parametrize(
    ("found", "changed", "message"),
    [
        ('"rows": 56', '"rows": 57', "do not add up"),
        ('"rows": 8\n', '"rows": 9\n', "do not add up"),
        ('"held_out_rows": 9', '"held_out_rows": 2', "claims .*: the file was changed"),
        ('"held_out_rows": 9', '"held_out_rows": -1', "claims .*: the file was changed"),
        ('"held_out_rows": 9', '"held_out_rows": "9"', "expected held_out_rows to be a number"),
        ('"rows_per_shard": 16', '"rows_per_shard": 8', "claims .*: the file was changed"),
        ('"width": 40', '"width": 41', "do not add up"),
        ('"max_tokens": 48', '"max_tokens": 47', "claims .*: the file was changed"),
        ('"offset": 32', '"offset": 0', "claims .*: the file was changed"),
        ('"identity": "', '"identity": "0', "claims .*: the file was changed"),
        ('"format_version": 2', '"format_version": 1', "format version 1"),
        ('"dtype": "float16",', "", "expected the fields"),
        ("{", "", "not valid JSON"),
    ],
)
def test_changed_manifest_is_refused(found: str, changed: str, message: str, own: Path) -> None:
    path = own / "manifest.json"
    text = path.read_text()
    assert found in text
    path.write_text(text.replace(found, changed, 1))
    with pytest.raises(CacheError, match=rf"manifest\.json: (.* )?{message}"):
        CacheReader(own)


_FLIP = """
import sys
from pathlib import Path
from teacher_cache.format import CacheError
from teacher_cache.reader import CacheReader

cache, path = Path(sys.argv[1]), Path(sys.argv[2])
whole = path.read_bytes()
refused = 0
for place in range(0, len(whole), 5):
    flipped = bytearray(whole)
    flipped[place] ^= 0x81
    path.unlink()
    path.write_bytes(flipped)
    reader = CacheReader(cache)
    try:
        reader.vectors(range(16)), reader.texts(range(16)), reader.sources(range(16))
    except CacheError:
        refused += 1
print(refused, len(range(0, len(whole), 5)))
"""


def test_flipped_bytes_give_wrong_values_or_an_error_but_never_a_crash(own: Path) -> None:
    """Only verify holds values against their checksum; every reader looks at what they hang on."""
    result = subprocess.run(
        [sys.executable, "-c", _FLIP, str(own), str(shard_file(own, 0))],
        stdout=subprocess.PIPE,
        check=True,
    )
    refused, tried = map(int, result.stdout.split())
    assert 0.2 * tried < refused < tried
