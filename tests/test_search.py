"""Nearest rows: exact ones against a float64 oracle, an index's against the exact ones."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from jobs import bert, contents, copy, corpus, lsa, made, unit, write_corpus
from small_caches import write_cache

import teacher_cache.search
from data.corpus import Corpus, CorpusSpec, text_id
from teacher_cache.build import silent
from teacher_cache.format import Block, CacheError
from teacher_cache.index_build import Settings, cost, ensure_index
from teacher_cache.reader import CacheReader
from teacher_cache.search import TOGETHER, Nearest, overlap, row_of, search, views
from teacher_cache.search_index import (
    IDS_FILE,
    INDEX_FILE,
    RECORD_FILE,
    SearchIndex,
    candidates,
)
from teacher_cache.verify import verify

SETTINGS = Settings(lists=8, sample=400, width=7, queries=64)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """540 sentences under `left` and `right`; not to be changed."""
    return CacheReader(write_cache(tmp_path_factory.mktemp("many"), texts=540))


@pytest.fixture(scope="module")
def indexed(many: CacheReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of `many`; not to be changed."""
    folder = tmp_path_factory.mktemp("indexed")
    ensure_index(many, folder, SETTINGS, phase=silent)
    return folder


@pytest.fixture
def index(indexed: Path, tmp_path: Path) -> Path:
    """An index of `many` that may be changed."""
    return copy(indexed, tmp_path / "index")


def oracle(
    reader: CacheReader, row: int, blocks: tuple[Block, ...], k: int
) -> list[tuple[int, float]]:
    """Every other row by its cosine in float64, of equal ones the first first."""
    vectors = reader.vectors(range(len(reader))).astype(np.float64)
    part = unit(np.concatenate([vectors[:, block.columns] for block in blocks], axis=1))
    cosines = [float(np.sum(one * part[row])) for one in part]
    order = sorted((-cosine, other) for other, cosine in enumerate(cosines) if other != row)
    return [(other, -cosine) for cosine, other in order[:k]]


def assert_exact(found: Nearest, expected: list[tuple[int, float]]) -> None:
    rows, cosines = zip(*expected, strict=True)
    assert found.rows.tolist() == list(rows)
    np.testing.assert_allclose(found.similarities, cosines, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 7, 539, 1000])
@pytest.mark.parametrize("block_rows", [1, 100, 540])
def test_exact_search_is_that_of_float64(
    many: CacheReader, monkeypatch: pytest.MonkeyPatch, k: int, block_rows: int
) -> None:
    monkeypatch.setattr(teacher_cache.search, "BLOCK_BYTES", 2 * many.manifest.width * block_rows)
    chosen = views(many)
    assert [view.name for view in chosen] == ["left", "right", TOGETHER]
    for row in (0, 101, 539):
        found = search(many, many.vectors([row])[0], chosen, k, own=row)
        for view in chosen:
            assert_exact(found[view.name], oracle(many, row, view.blocks, k))


def test_some_of_the_teachers_are_searched_in_the_order_asked(
    small_encoder: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    three = [lsa(), bert(small_encoder), lsa(name="wide", width=12)]
    made(tmp_path / "cache", corpus(tmp_path), three)
    reader = CacheReader(tmp_path / "cache")
    chosen = views(reader, ["wide", "lsa"])
    assert [view.name for view in chosen] == ["wide", "lsa", TOGETHER]
    ensured = ensure_index(reader, tmp_path / "index", Settings(2, 56), phase=silent)
    for index in (None, ensured):
        found = search(reader, reader.vectors([3])[0], chosen, 5, own=3, index=index)
        for view in chosen:
            assert_exact(found[view.name], oracle(reader, 3, view.blocks, 5))
    (only,) = views(reader, ["bert"])
    assert only.name == "bert"


def test_equal_rows_come_in_their_order_and_only_the_own_one_is_left_out(tmp_path: Path) -> None:
    """The teacher does not see case, so that the three spellings of a text have one vector."""
    words = ["river", "house", "letter", "winter", "engine", "table", "window", "garden", "music"]
    texts = [
        f"{a} {b} {i}" for i, (a, b) in enumerate(zip(words, words[3:] + words[:3], strict=True))
    ]
    spelt = [spell(text) for spell in (str.lower, str.upper, str.title) for text in texts]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in spelt)
    (tmp_path / "texts.jsonl").write_text(lines)
    spec = {"sources": [{"name": "made", "path": "texts.jsonl"}]}
    texts_of = Corpus(CorpusSpec.model_validate(spec), tmp_path)
    made(tmp_path / "cache", texts_of, [lsa(width=4, sample=27)])
    reader = CacheReader(tmp_path / "cache")
    (view,) = views(reader)
    for row in (0, 9, 18):
        (found,) = search(reader, reader.vectors([row])[0], [view], 4, own=row).values()
        assert found.rows[:2].tolist() == [twin for twin in (0, 9, 18) if twin != row]
        assert found.similarities[:2] == pytest.approx(1)
        assert_exact(found, oracle(reader, row, view.blocks, 4))
    (found,) = search(reader, reader.vectors([9])[0], [view], 3).values()
    assert found.rows.tolist() == [0, 9, 18]


def test_overlap_is_the_share_of_common_neighbours(many: CacheReader) -> None:
    found = search(many, many.vectors([7])[0], views(many), 20, own=7)
    left, right = (set(found[name].rows.tolist()) for name in ("left", "right"))
    assert overlap(found) == {("left", "right"): len(left & right) / 20}
    assert 0 < len(left & right) < 20


def test_index_reaches_its_target_and_what_it_finds_is_exact(
    many: CacheReader, indexed: Path
) -> None:
    opened = open_again(many, indexed)
    assert set(opened.record.recall) == {"left", "right", TOGETHER}
    assert min(opened.record.recall.values()) >= 0.98
    kept = []
    for row in range(0, 540, 11):
        vector = many.vectors([row])[0]
        exact = search(many, vector, views(many), 10, own=row)
        found = search(many, vector, views(many), 10, own=row, index=opened)
        for name, truth in exact.items():
            similarity = dict(zip(truth.rows, truth.similarities, strict=True))
            common = [place for place, n in enumerate(found[name].rows) if n in similarity]
            kept.append(len(common) / 10)
            for place in common:
                same = similarity[found[name].rows[place]]
                assert found[name].similarities[place] == same
            assert row not in found[name].rows
    assert np.mean(kept) > 0.95


def test_blocks_are_projected_nearly_as_well_as_a_full_svd_can(
    many: CacheReader, indexed: Path
) -> None:
    index = faiss.read_index(str(indexed / INDEX_FILE))
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    rows = many.vectors(range(540)).astype(np.float64)
    start = 0
    for block in many.manifest.blocks:
        part, width = rows[:, block.columns], min(SETTINGS.width, block.width)
        own = matrix[start : start + width, block.columns].astype(np.float64)
        lost = ((part - part @ own.T @ own) ** 2).sum()
        least = (np.linalg.svd(part, compute_uv=False)[width:] ** 2).sum()
        assert 0 < lost < 1.05 * least
        start += width
    assert start == transform.d_out == 14
    assert np.count_nonzero(matrix) == 7 * 12 + 7 * 8


def test_index_looks_into_no_more_lists_than_recall_needs(
    many: CacheReader, tmp_path: Path
) -> None:
    """With as many candidates as rows, all lists give everything, and one list its own rows."""
    index = ensure_index(many, tmp_path, Settings(8, 400, width=12), phase=silent)
    probe = Nearest(many.vectors([0])[0], views(many)[0], 540, teachers=2).probe(20)
    shown = [
        len(SearchIndex(changed(index, probes), index._index, index._ids).candidates(probe, 540))
        for probes in (1, 2, 8)
    ]
    assert 0 < shown[0] < shown[1] < shown[2] == 540
    assert 1 <= index.record.probes <= 8


def changed(index: SearchIndex, probes: int) -> Any:
    facts = {**index.record.to_json(), "probes": probes}
    return type(index.record).from_json(facts, "test")


def open_again(reader: CacheReader, folder: Path) -> SearchIndex:
    """The index of a folder, which must be fit."""
    lines: list[str] = []
    opened = ensure_index(reader, folder, phase=silent, tell=lines.append)
    assert not lines
    return opened


def test_index_is_made_once_and_its_cost_is_told_before(many: CacheReader, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = tmp_path / "new" / "index"
    ensure_index(many, folder, SETTINGS, phase=silent, tell=lines.append)
    assert "is not there yet: making it for 540 rows, which takes 0 MB of disk" in lines[0]
    assert "recall@10 of the index: left " in lines[1]
    found = contents(folder)
    assert set(found) == {INDEX_FILE, IDS_FILE, RECORD_FILE}
    disk = sum(map(len, found.values())) - len(found[RECORD_FILE])
    assert cost(many, SETTINGS).disk <= disk <= cost(many, SETTINGS).disk + 2000
    open_again(many, folder)
    assert contents(folder) == found


def test_ids_are_found_with_and_without_an_index(many: CacheReader, indexed: Path) -> None:
    opened = open_again(many, indexed)
    for row in (0, 63, 64, 300, 539):
        id_ = text_id(many.texts([row])[0])
        assert row_of(many, id_) == opened.row_of(id_) == row
    half = text_id(many.texts([5])[0])[:8] + bytes(8)
    for unknown in (text_id("nowhere"), half):
        assert row_of(many, unknown) is opened.row_of(unknown) is None


def cut_short(folder: Path) -> None:
    os.truncate(folder / INDEX_FILE, (folder / INDEX_FILE).stat().st_size - 1)


def flip_head(folder: Path) -> None:
    data = bytearray((folder / INDEX_FILE).read_bytes())
    data[60] ^= 1
    (folder / INDEX_FILE).write_bytes(data)


def lose_ids(folder: Path) -> None:
    (folder / IDS_FILE).unlink()


def edit_record(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        facts = json.loads((folder / RECORD_FILE).read_text()) | changes
        (folder / RECORD_FILE).write_text(json.dumps(facts))

    return edit


def tear_record(folder: Path) -> None:
    os.truncate(folder / RECORD_FILE, 20)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut_short, "is damaged: index.faiss has "),
        (flip_head, "is damaged: index.faiss has another checksum"),
        (lose_ids, "is damaged: ids.bin has 0 bytes, not 8640"),
        (tear_record, "is damaged: "),
        (edit_record(identity="ab" * 16), "is of another cache, abab"),
        (edit_record(version=0), "has the version 0, not 1"),
        (edit_record(lists="many"), "expected lists to be a number"),
        (edit_record(more=1), "expected the fields"),
        (edit_record(probes=9), "does not add up"),
    ],
)
def test_index_that_does_not_fit_is_made_again_in_one_line(
    damage: Callable[[Path], None], why: str, many: CacheReader, index: Path
) -> None:
    before = contents(index)
    damage(index)
    lines: list[str] = []
    ensure_index(many, index, SETTINGS, phase=silent, tell=lines.append)
    assert why in lines[0]
    assert contents(index) == before


def test_index_leads_nowhere_else(cache: CacheReader, tmp_path: Path) -> None:
    """It may have come with a stranger's cache: what it links to is neither read nor written."""
    own = CacheReader(copy(cache.path, tmp_path / "own"))
    folder, aside = own.path / "search", tmp_path / "aside"
    ensure_index(own, folder, Settings(2, 56), phase=silent)
    whole = contents(folder)
    for name in whole:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        lines: list[str] = []
        ensure_index(own, folder, Settings(2, 56), phase=silent, tell=lines.append)
        assert f"is damaged: {folder / name} is a symbolic link, expected a file" in lines[0]
        assert not (folder / name).is_symlink()
        assert (tmp_path / name).read_bytes() == whole[name]
    folder.rename(aside)
    folder.symlink_to(aside)
    with pytest.raises(CacheError, match="search is a symbolic link, expected a folder"):
        ensure_index(own, folder, Settings(2, 56), phase=silent)


def test_damaged_codes_and_row_numbers_cost_neighbours_and_nothing_else(
    many: CacheReader, index: Path
) -> None:
    head = json.loads((index / RECORD_FILE).read_text())["head_bytes"]
    data = bytearray((index / INDEX_FILE).read_bytes())
    noise = np.random.default_rng(0)
    for place in noise.integers(head, len(data), 400):
        data[place] = noise.integers(256)
    (index / INDEX_FILE).write_bytes(data)
    opened = open_again(many, index)
    for row in range(0, 540, 60):
        found = search(many, many.vectors([row])[0], views(many), 10, own=row, index=opened)
        for view in views(many):
            cosine = dict(oracle(many, row, view.blocks, 540))
            expected = [cosine[n] for n in found[view.name].rows.tolist()]
            np.testing.assert_allclose(found[view.name].similarities, expected, atol=1e-14)


def test_row_number_that_stands_twice_is_one_candidate() -> None:
    index = faiss.index_factory(4, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    rows = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    index.train(rows)
    index.add_with_ids(rows, np.arange(100) % 30)
    assert candidates(index, rows[0], 5, 2).tolist() == list(range(30))


def test_folder_that_cannot_be_written_to_is_refused_with_a_way_out(
    many: CacheReader, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="is no index's folder: it holds file; give an empty"):
        ensure_index(many, tmp_path, SETTINGS, phase=silent)
    assert contents(tmp_path) == {"file": b"mine"}
    with pytest.raises(CacheError, match=r"no index can be written to .* --index FOLDER.*--exact"):
        ensure_index(many, tmp_path / "file", SETTINGS, phase=silent)


def test_index_that_was_broken_off_leaves_nothing_that_is_taken_for_one(
    many: CacheReader, index: Path
) -> None:
    (index / RECORD_FILE).unlink()

    @contextmanager
    def breaking(what: str, _: int | None) -> Iterator[Callable[[int], None]]:
        if what == "indexing":
            raise KeyboardInterrupt
        yield lambda _: None

    with pytest.raises(KeyboardInterrupt):
        ensure_index(many, index, SETTINGS, phase=breaking)
    assert set(contents(index)) == {INDEX_FILE, IDS_FILE}
    lines: list[str] = []
    ensure_index(many, index, SETTINGS, phase=silent, tell=lines.append)
    assert "is not there yet" in lines[0]


def test_too_little_room_is_said_before_anything_is_read(
    many: CacheReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(CacheError, match=r"needs 0\.0 GB .* 0\.0 GB are free.*--exact"):
        ensure_index(many, tmp_path / "index", SETTINGS, phase=silent)
    assert contents(tmp_path / "index") == {}


def test_one_row_has_no_neighbour(small_encoder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    made(tmp_path / "cache", corpus(tmp_path, texts=1, held_out=0), [bert(small_encoder)])
    reader = CacheReader(tmp_path / "cache")
    index = ensure_index(reader, tmp_path / "index", phase=silent)
    for through in (None, index):
        (found,) = search(
            reader, reader.vectors([0])[0], views(reader), 3, own=0, index=through
        ).values()
        assert len(found.rows) == 0
        (found,) = search(reader, reader.vectors([0])[0], views(reader), 3, index=through).values()
        assert found.rows.tolist() == [0]


def test_neither_verify_nor_a_build_minds_an_index_in_the_cache(
    small_encoder: Path, cache: CacheReader, tmp_path: Path
) -> None:
    own = CacheReader(copy(cache.path, tmp_path / "own"))
    ensure_index(own, own.path / "search", Settings(2, 56), phase=silent)
    before = contents(own.path)
    assert verify(own) == []
    manifest = made(own.path, corpus(cache.path.parent), [bert(small_encoder), lsa()])
    assert manifest == cache.manifest
    assert contents(own.path) == before
