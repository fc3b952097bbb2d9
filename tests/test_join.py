"""A joined cache is what one build with all its teachers gives; what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import assert_rounded, bert, contents, copy, corpus, joined, lsa, made, write_corpus
from numpy.typing import NDArray
from shard_files import shard_file
from small_models import write_encoder

from data.corpus import Corpus
from teacher_cache.build import Options, build
from teacher_cache.format import CacheError
from teacher_cache.join import join
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import Teacher
from teacher_cache.verify import verify

LEFT, MIDDLE, RIGHT = (lsa(name=n, width=w) for n, w in (("left", 6), ("middle", 4), ("right", 9)))
ALL = range(56)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of the same texts: `left`, `right`, `pair` (left and middle), and `all` in one go."""
    folder = tmp_path_factory.mktemp("apart")
    write_corpus(folder)
    jobs = {
        "left": [LEFT],
        "right": [RIGHT],
        "pair": [LEFT, MIDDLE],
        "both": [LEFT, RIGHT],
        "all": [LEFT, MIDDLE, RIGHT],
    }
    for name, teachers in jobs.items():
        made(folder / name, corpus(folder), teachers)
    return folder


def opened(place: Path, *names: str) -> list[CacheReader]:
    return [CacheReader(place / name) for name in names]


def slices(cache: CacheReader) -> list[NDArray[np.float16]]:
    """The teachers' stored columns, as they are."""
    return [cache.vectors(ALL)[:, block.columns] for block in cache.manifest.blocks]


@pytest.mark.parametrize(
    ("names", "whole"), [(("left", "right"), "both"), (("pair", "right"), "all")]
)
def test_joined_cache_is_that_of_one_build_but_for_the_second_rounding(
    names: tuple[str, ...], whole: str, place: Path, tmp_path: Path
) -> None:
    parts = opened(place, *names)
    manifest = join(parts, tmp_path / "out")
    found, expected = CacheReader(tmp_path / "out"), CacheReader(place / whole)
    assert verify(found) == []
    assert found.identity == expected.identity == manifest.identity
    files, others = contents(found.path), contents(expected.path)
    decided = [name for name in others if not name.startswith("shards/")]
    assert [name for name in decided if files[name] != others[name]] == ["manifest.json"]
    assert found.manifest.blocks == expected.manifest.blocks
    for name in ("texts", "ids", "sources"):
        assert getattr(found, name)(ALL) == getattr(expected, name)(ALL)
    for name in ("tokens", "norms"):
        np.testing.assert_array_equal(getattr(found, name)(ALL), getattr(expected, name)(ALL))
    # From what was stored to what is stored now there is one rounding …
    assert_rounded(found.vectors(ALL), joined(*(part for cache in parts for part in slices(cache))))
    # … which falls otherwise than the one build's by a unit or two in the last place.
    values, once = found.vectors(ALL), expected.vectors(ALL)
    apart = np.abs(values.astype(np.float64) - once)
    assert (apart <= 2 * np.spacing(np.maximum(np.abs(values), np.abs(once)))).all()
    assert 0.1 < (apart > 0).mean() < 0.4


def test_order_of_the_caches_is_that_of_the_blocks(place: Path, tmp_path: Path) -> None:
    join(opened(place, "right", "left"), tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    assert [(b.teacher, b.offset) for b in found.manifest.blocks] == [("right", 0), ("left", 9)]
    assert found.identity != CacheReader(place / "both").identity


def test_three_are_joined_at_once(place: Path, small_encoder: Path, tmp_path: Path) -> None:
    made(tmp_path / "bert", corpus(place), [bert(small_encoder)])
    parts = [*opened(place, "left", "right"), CacheReader(tmp_path / "bert")]
    join(parts, tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    assert found.teachers == ("left", "right", "bert")
    assert_rounded(found.vectors(ALL), joined(*(part for cache in parts for part in slices(cache))))


def test_shards_are_of_the_first_ones_size(place: Path, tmp_path: Path) -> None:
    options = Options(token_budget=128, rows_per_shard=23)
    build(tmp_path / "right", corpus(place), [RIGHT], options=options)
    parts = [CacheReader(place / "left"), CacheReader(tmp_path / "right")]
    join(parts, tmp_path / "out")
    join(parts[::-1], tmp_path / "other")
    found, other = CacheReader(tmp_path / "out"), CacheReader(tmp_path / "other")
    assert [shard.rows for shard in found.manifest.shards] == [16, 16, 16, 8]
    assert [shard.rows for shard in other.manifest.shards] == [23, 23, 10]
    for name in ("left", "right"):
        np.testing.assert_array_equal(found.vectors(ALL, [name]), other.vectors(ALL, [name]))
    assert verify(found) == verify(other) == []


def test_parquet_is_read_and_written(place: Path, tmp_path: Path) -> None:
    options = Options(token_budget=128, rows_per_shard=16, shard_format="parquet")
    build(tmp_path / "right", corpus(place), [RIGHT], options=options)
    join(
        [CacheReader(place / "left"), CacheReader(tmp_path / "right")],
        tmp_path / "out",
        shard_format="parquet",
    )
    join(opened(place, "left", "right"), tmp_path / "plain")
    found, plain = CacheReader(tmp_path / "out"), CacheReader(tmp_path / "plain")
    assert {shard.format for shard in found.manifest.shards} == {"parquet"}
    np.testing.assert_array_equal(found.vectors(ALL), plain.vectors(ALL))
    assert found.identity == plain.identity
    assert verify(found) == []


def test_lost_shard_is_written_again_by_join_and_by_build(place: Path, tmp_path: Path) -> None:
    parts = opened(place, "left", "right")
    join(parts, tmp_path / "out")
    whole = contents(tmp_path / "out")
    shard_file(tmp_path / "out", 1).unlink()
    join(parts, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    shard_file(tmp_path / "out", 1).unlink()
    made(tmp_path / "out", corpus(place), [LEFT, RIGHT])
    found, once = CacheReader(tmp_path / "out"), CacheReader(place / "both")
    assert verify(found) == []
    np.testing.assert_array_equal(found.vectors(range(16, 32)), once.vectors(range(16, 32)))


def test_joining_again_changes_nothing(place: Path, tmp_path: Path) -> None:
    parts = opened(place, "left", "right")
    manifest = join(parts, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert join(parts, tmp_path / "out") == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def one_source(folder: Path, texts: list[str], **changes: Any) -> Corpus:
    """A corpus of these texts in this order."""
    folder.mkdir(exist_ok=True)
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines))
    source = {"name": changes.pop("name", "made"), "path": "texts.jsonl"}
    return corpus(folder, sources=[source], **{"held_out": 0, **changes})


TEXTS = [f"{word} number {i}" for i in range(20) for word in ("house", "river")]


def refusal(
    tmp_path: Path, texts: list[str], teacher: Teacher = RIGHT, **changes: Any
) -> tuple[str, Path, Path]:
    """Why a cache of `TEXTS` is not joined with that of these texts; both folders."""
    one, other = tmp_path / "one", tmp_path / "other"
    made(one / "cache", one_source(one, TEXTS, held_out=changes.get("held_out", 0)), [LEFT])
    made(other / "cache", one_source(other, texts, **{"seed": 0, **changes}), [teacher])
    with pytest.raises(CacheError) as error:
        join([CacheReader(one / "cache"), CacheReader(other / "cache")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(error.value), one / "cache", other / "cache"


def test_another_text_is_refused_with_its_row_and_both_texts(tmp_path: Path) -> None:
    told, one, other = refusal(tmp_path, [*TEXTS[:33], "a house", *TEXTS[34:]])
    assert told == (
        f"row 33 of {one} is the text {TEXTS[33]!r}, of {other} 'a house': "
        "expected the same texts in the same order"
    )


def test_another_order_is_refused_with_its_first_row(tmp_path: Path) -> None:
    told, *_ = refusal(tmp_path, [*TEXTS[:6], TEXTS[7], TEXTS[6], *TEXTS[8:]])
    assert told.startswith("row 6 of ")


def test_other_counts_are_refused(tmp_path: Path) -> None:
    told, one, other = refusal(tmp_path, TEXTS[:-1])
    assert told.startswith(f"{other} has 39 rows, {one} has 40: ")


def test_another_number_of_held_out_rows_is_refused(tmp_path: Path) -> None:
    """The same rows in the same order, of which the last are held out in one of the two alone."""
    one, other = tmp_path / "one", tmp_path / "other"
    made(one / "cache", one_source(one, TEXTS, held_out=0.2), [LEFT])
    first = CacheReader(one / "cache")
    held_out = len(first.held_out_rows)
    assert held_out
    made(other / "cache", one_source(other, first.texts(range(40))), [RIGHT])
    with pytest.raises(CacheError, match=rf"has 0 held-out rows, .* has {held_out}: expected"):
        join([first, CacheReader(other / "cache")], tmp_path / "out")


def test_another_source_is_refused_because_prompts_go_by_it(tmp_path: Path) -> None:
    told, one, other = refusal(tmp_path, TEXTS, name="web")
    assert told.startswith(f"row 0 of {one} comes from the source 'made', of {other} from 'web'")


def test_a_teacher_that_comes_twice_is_refused(tmp_path: Path) -> None:
    told, one, other = refusal(tmp_path, TEXTS, LEFT)
    assert told.startswith(f"the teacher left is in {one} and in {other}: ")
    assert "jasper-cache merge" in told


def test_folders_that_hold_something_else_are_refused_and_kept(place: Path, tmp_path: Path) -> None:
    parts = opened(place, "left", "right")
    before = contents(place / "left")
    with pytest.raises(CacheError, match="left is one of the caches to be read"):
        join(parts, place / "left")
    assert contents(place / "left") == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"is not a cache: .* thesis\.txt"):
        join(parts, tmp_path)
    own = copy(place / "pair", tmp_path / "own")
    with pytest.raises(CacheError, match="own has the teachers left, middle, not left, right;"):
        join(parts, own)
    once = copy(place / "both", tmp_path / "once")
    with pytest.raises(CacheError, match=r"once was begun otherwise: build\.shard_format is"):
        join(parts, once, shard_format="parquet")
    made(tmp_path / "short", corpus(place, texts=30), [LEFT, RIGHT])
    with pytest.raises(CacheError, match=r"short holds other rows: plan\.corpus\.texts is 30"):
        join(parts, tmp_path / "short")
    with pytest.raises(CacheError, match="expected two or more caches to join"):
        join(parts[:1], tmp_path / "out")


def test_damaged_shard_gets_no_new_checksum(place: Path, tmp_path: Path) -> None:
    own = copy(place / "right", tmp_path / "right")
    path = shard_file(own, 2)
    data = bytearray(path.read_bytes())
    embedding = CacheReader(own).shard(2).column("embedding").flatten().buffers()[1].to_pybytes()
    data[data.index(embedding)] ^= 1
    path.write_bytes(data)
    parts = [CacheReader(place / "left"), CacheReader(own)]
    with pytest.raises(CacheError, match=rf"{path} has checksum .* jasper-cache verify {own}"):
        join(parts, tmp_path / "out")
    assert not (tmp_path / "out" / "shards" / "00002.json").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_pooled_states_are_kept_from_the_cache_that_has_them(
    place: Path, small_encoder: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    other = write_encoder(tmp_path / "model", layers=1, hidden=16)
    keepers = {
        "bert": bert(small_encoder, keep_pooled=True),
        "small": bert(other, name="small", keep_pooled=True),
    }
    for name, teacher in keepers.items():
        made(tmp_path / name, corpus(place), [teacher])
    made(tmp_path / "once", corpus(place), [LEFT, keepers["bert"]])
    kept = CacheReader(tmp_path / "bert")
    join([CacheReader(place / "left"), kept], tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    assert found.identity == CacheReader(tmp_path / "once").identity
    np.testing.assert_array_equal(found.pooled(ALL), kept.pooled(ALL))
    assert verify(found) == []
    parts = [kept, CacheReader(tmp_path / "small")]
    with pytest.raises(CacheError, match=r"pooled states of bert and small.*--keep-pooled"):
        join(parts, tmp_path / "two")
    with pytest.raises(CacheError, match="none of the caches keeps the pooled state of left"):
        join(parts, tmp_path / "two", keep_pooled="left")
    join(parts, tmp_path / "two", keep_pooled="small")
    found = CacheReader(tmp_path / "two")
    assert found.manifest.pooled == parts[1].manifest.pooled
    np.testing.assert_array_equal(found.pooled(ALL), parts[1].pooled(ALL))
