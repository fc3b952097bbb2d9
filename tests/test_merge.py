"""A merged cache has every text once, bit for bit, and trains on none that any cache holds out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jobs import ROWS_PER_SHARD, bert, contents, corpus, lsa, made

from data.corpus import Corpus
from teacher_cache.build import Options, build
from teacher_cache.format import CacheError
from teacher_cache.merge import merge
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import Teacher
from teacher_cache.verify import verify

Row = tuple[str, str, bytes, bytes, bytes]

WORDS = ("house", "river", "table", "window", "captain", "garden")
TEXTS = [f"{word} number {i}" for i in range(20) for word in WORDS]


def write(folder: Path, texts: list[str], asked: list[str]) -> Path:
    """Two sources of these texts."""
    folder.mkdir()
    for name, lines in (("web", texts), ("asked", asked)):
        rows = (json.dumps({"text": text}) + "\n" for text in lines)
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three caches under one teacher, `a`, `b` and `c`, whose texts overlap: some in one are held
    out in another, because the seeds differ."""
    folder = tmp_path_factory.mktemp("merging")
    write(folder / "a-texts", TEXTS[:40], TEXTS[60:65])
    write(folder / "b-texts", TEXTS[25:58], TEXTS[62:70])
    write(folder / "c-texts", TEXTS[10:35], TEXTS[100:110])
    made(folder / "a", corpus(folder / "a-texts"), [lsa()])
    made(folder / "b", corpus(folder / "b-texts", seed=1), [fitted(folder)])
    made(folder / "c", corpus(folder / "c-texts", seed=2, held_out=0.4), [fitted(folder)])
    return folder


def fitted(place: Path, **changes: Any) -> Teacher:
    """The teacher that was fitted in cache `a`, for other texts."""
    return lsa(path=str(place / "a" / "teachers" / "lsa"), **changes)


def opened(place: Path, *names: str) -> list[CacheReader]:
    return [CacheReader(place / name) for name in names]


def rows_of(cache: CacheReader, rows: range) -> list[Row]:
    """Rows as their bytes."""
    return list(
        zip(
            cache.texts(rows),
            cache.sources(rows),
            [row.tobytes() for row in cache.vectors(rows)],
            [row.tobytes() for row in cache.norms(rows)],
            [row.tobytes() for row in cache.tokens(rows)],
            strict=True,
        )
    )


def expected(caches: list[CacheReader]) -> tuple[list[Row], list[Row]]:
    """What is to be trained on and what is held out, by plain Python."""
    held_out: dict[str, Row] = {}
    trained: dict[str, Row] = {}
    for cache in caches:
        for row in rows_of(cache, cache.held_out_rows):
            held_out.setdefault(row[0], row)
    for cache in caches:
        for row in rows_of(cache, cache.train_rows):
            if row[0] not in held_out:
                trained.setdefault(row[0], row)
    return list(trained.values()), list(held_out.values())


@pytest.mark.parametrize("names", ["ab", "ba", "abc", "ca"])
def test_merged_rows_are_those_of_the_caches_bit_for_bit(
    names: str, place: Path, tmp_path: Path
) -> None:
    caches = opened(place, *names)
    merged = merge(caches, tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    trained, held_out = expected(caches)
    assert rows_of(found, found.train_rows) == trained
    assert rows_of(found, found.held_out_rows) == held_out
    assert verify(found) == []
    assert merged.manifest == found.manifest
    given = sum(map(len, caches))
    assert given == len(found) + merged.duplicates + merged.leaks
    assert sum(merged.rows) == len(found)
    assert found.manifest.blocks == caches[0].manifest.blocks


def test_text_that_one_cache_holds_out_is_not_trained_on(place: Path, tmp_path: Path) -> None:
    caches = opened(place, "a", "c")
    trained = {text for cache in caches for text in cache.texts(cache.train_rows)}
    held_out = {text for cache in caches for text in cache.texts(cache.held_out_rows)}
    leaks = trained & held_out
    assert len(leaks) > 5, "the case is not there"
    merged = merge(caches, tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    assert not held_out & set(found.texts(found.train_rows))
    assert held_out == set(found.texts(found.held_out_rows))
    assert merged.leaks == len(leaks)


def test_counts_are_those_of_the_rows(place: Path, tmp_path: Path) -> None:
    caches = opened(place, "a", "b", "c")
    manifest = merge(caches, tmp_path / "out").manifest
    found = CacheReader(tmp_path / "out")
    kept, held_out = (
        Counter(found.sources(range(len(found)))),
        Counter(found.sources(found.held_out_rows)),
    )
    for source in ("web", "asked"):
        counts = manifest.counts[source]
        assert (counts["kept"], counts["held_out"]) == (kept[source], held_out[source])
        assert counts["read"] == sum(cache.manifest.counts[source]["read"] for cache in caches)
        assert counts["kept"] + counts["duplicates"] == counts["read"]
    assert manifest.corpus == {"merged": [cache.manifest.corpus for cache in caches]}


def test_merging_in_two_steps_is_merging_at_once(place: Path, tmp_path: Path) -> None:
    first, second, third = opened(place, "a", "b", "c")
    merge([first, second], tmp_path / "two")
    merge([CacheReader(tmp_path / "two"), third], tmp_path / "steps")
    merge([first, second, third], tmp_path / "once")
    assert contents(tmp_path / "steps") == contents(tmp_path / "once")


def test_parquet_is_read_and_written(place: Path, tmp_path: Path) -> None:
    first, second = opened(place, "a", "b")
    merge([first, second], tmp_path / "plain")
    options = Options(token_budget=128, rows_per_shard=7, shard_format="parquet")
    build(tmp_path / "b", corpus(place / "b-texts", seed=1), [fitted(place)], options=options)
    merge([first, CacheReader(tmp_path / "b")], tmp_path / "out", shard_format="parquet")
    found, plain = CacheReader(tmp_path / "out"), CacheReader(tmp_path / "plain")
    assert {shard.format for shard in found.manifest.shards} == {"parquet"}
    assert rows_of(found, range(len(found))) == rows_of(plain, range(len(plain)))
    assert found.identity == plain.identity
    assert found.manifest.rows_per_shard == ROWS_PER_SHARD


def test_pooled_states_stay_with_their_rows(
    small_encoder: Path, place: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        teacher = bert(small_encoder, keep_pooled=True)
        made(tmp_path / name, corpus(place / f"{name}-texts"), [teacher])
    caches = opened(tmp_path, "a", "b")
    merge(caches, tmp_path / "out")
    found = CacheReader(tmp_path / "out")
    states = {
        text: state.tobytes()
        for cache in reversed(caches)
        for text, state in zip(
            cache.texts(range(len(cache))), cache.pooled(range(len(cache))), strict=True
        )
    }
    rows = range(len(found))
    for text, state in zip(found.texts(rows), found.pooled(rows), strict=True):
        assert states[text] == state.tobytes()
    assert verify(found) == []
    made(tmp_path / "without", corpus(place / "b-texts"), [bert(small_encoder)])
    with pytest.raises(CacheError, match=r"keeps the pooled state of bert, .* of no teacher"):
        merge([caches[0], CacheReader(tmp_path / "without")], tmp_path / "other")


def test_all_licences_that_are_named_stay(place: Path, tmp_path: Path) -> None:
    for name, licence in (("one", "mit"), ("two", "cc-by-nc-4.0")):
        made(tmp_path / name, corpus(place / "b-texts"), [fitted(place, licence=licence)])
    caches = [*opened(tmp_path, "one", "two"), CacheReader(tmp_path / "one")]
    (block,) = merge(caches, tmp_path / "out").manifest.blocks
    assert block.licence == "mit and cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "other"}, "has the teachers lsa, .* has other: .*jasper-cache join"),
        ({"prompts": {"default": "the "}}, "teacher lsa: its prompts is {'default': ''} in "),
        ({"path": None}, "teacher lsa: its fingerprint is "),
    ],
)
def test_other_teachers_are_refused(
    changes: dict[str, Any], words: str, place: Path, tmp_path: Path
) -> None:
    teacher = lsa() if "path" in changes else fitted(place, **changes)
    made(tmp_path / "b", corpus(place / "b-texts"), [teacher])
    with pytest.raises(CacheError, match=words):
        merge([CacheReader(place / "a"), CacheReader(tmp_path / "b")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merge_that_leaves_nothing_to_train_on_is_refused(place: Path, tmp_path: Path) -> None:
    """Of two texts, each cache holds out the one that the other trains on."""
    folder = write(tmp_path / "texts", TEXTS[:1], TEXTS[1:2])

    def build_with_held_out(text: str) -> CacheReader:
        seeds = (seed for seed in range(100) if held_out(corpus(folder, seed=seed)) == [text])
        made(tmp_path / text, corpus(folder, seed=next(seeds)), [fitted(place)])
        return CacheReader(tmp_path / text)

    with pytest.raises(CacheError, match="every text to train on is held out in another"):
        merge([build_with_held_out(text) for text in TEXTS[:2]], tmp_path / "out")
    with pytest.raises(CacheError, match="expected two or more caches to merge, found"):
        merge(opened(place, "a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def held_out(texts: Corpus) -> list[str]:
    return [text.text for text in texts if text.held_out]
