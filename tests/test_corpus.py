import json
import math
import random
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.corpus import (
    Corpus,
    CorpusCounts,
    CorpusError,
    CorpusSpec,
    IdSet,
    SourceCounts,
    SourceSpec,
    Text,
    is_held_out,
    text_id,
)


def corpus(folder: Path, sources: dict[str, list[list[str]]], **options: Any) -> Corpus:
    """A corpus of JSONL files, one per source, with one row per group."""
    weights = options.pop("weights", {})
    for name, groups in sources.items():
        lines = (json.dumps({"texts": group}) + "\n" for group in groups)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    specs = [
        {"name": name, "path": f"{name}.jsonl", "fields": "texts", "weight": weights.get(name, 1)}
        for name in sources
    ]
    return Corpus(CorpusSpec.model_validate({"sources": specs, **options}), folder)


def singles(name: str, count: int) -> list[list[str]]:
    return [[f"{name}{i}"] for i in range(count)]


def nothing() -> dict[str, int]:
    return CorpusCounts({"any": SourceCounts()}).as_dict()["any"]


def shown(texts: Corpus) -> list[str]:
    return [text.text for text in texts]


def test_a_link_that_leads_nowhere_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    whole = corpus(tmp_path, {"a": singles("a", 3)})
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    for path in ("*.jsonl", "b.jsonl"):
        with pytest.raises(
            CorpusError, match=r"b\.jsonl: expected a file, found a link that leads"
        ):
            Corpus(CorpusSpec(sources=[SourceSpec(name="s", path=path)]), tmp_path)
    folder = CorpusSpec(sources=[SourceSpec(name="s", path=".", fields="texts")])
    assert shown(Corpus(folder, tmp_path)) == shown(whole)


def test_an_id_is_the_xxh3_128_digest_of_the_utf8_text() -> None:
    assert text_id("").hex() == "99aa06d3014798d86001c324468d497f"
    assert text_id("Zwölf") == xxhash.xxh3_128("Zwölf".encode()).digest()


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
@settings(derandomize=True, deadline=None)
def test_ids_are_sixteen_bytes_and_equal_for_equal_texts_only(one: str, other: str) -> None:
    assert len(text_id(one)) == 16
    assert (text_id(one) == text_id(other)) == (one == other)


def test_a_text_that_utf8_cannot_hold_has_no_id() -> None:
    with pytest.raises(CorpusError, match=r"found a lone U\+D800 at character 3"):
        text_id("ab\ud800")


def test_texts_carry_their_id_and_source(tmp_path: Path) -> None:
    assert list(corpus(tmp_path, {"a": [["one"]]})) == [Text(text_id("one"), "one", "a", False)]


def test_two_passes_and_two_readers_give_the_same_corpus(tmp_path: Path) -> None:
    rng = random.Random(0)
    sources = {
        name: [[f"{rng.randrange(400)}" for _ in range(rng.randint(1, 4))] for _ in range(200)]
        for name in "abc"
    }
    options: dict[str, Any] = {"weights": {"a": 3, "b": 0.7}, "held_out": 0.2}
    first = corpus(tmp_path, sources, **options)
    texts = list(first)
    counts = first.counts.as_dict()
    assert list(first) == texts
    assert first.counts.as_dict() == counts
    assert list(corpus(tmp_path, sources, **options)) == texts


def test_the_same_text_is_kept_once_across_rows_and_sources(tmp_path: Path) -> None:
    sources = {"a": [["x", "x"], ["y"], ["x"]], "b": [["y"], ["z"], ["w", "x"]]}
    texts = corpus(tmp_path, sources)
    assert Counter(shown(texts)) == {"x": 1, "y": 1, "z": 1, "w": 1}
    assert texts.counts.as_dict() == {
        "a": {**nothing(), "read": 3, "kept": 1, "duplicates": 3},
        "b": {**nothing(), "read": 3, "kept": 3, "duplicates": 1},
    }


def test_every_text_of_a_good_row_is_kept_or_a_duplicate(tmp_path: Path) -> None:
    rng = random.Random(1)
    groups = [[rng.choice(["", *"abcdefgh"]) for _ in range(3)] for _ in range(100)]
    texts = corpus(tmp_path, {"a": groups}, bad_rows="skip", held_out=0.5)
    kept = list(texts)
    counts = texts.counts.sources["a"]
    assert counts.read == 100
    assert counts.skipped == sum("" in group for group in groups)
    assert counts.kept == len(kept) == texts.counts.kept
    assert counts.kept + counts.duplicates == 3 * (counts.read - counts.skipped)
    assert counts.held_out == sum(text.held_out for text in kept)
    assert json.loads(json.dumps(texts.counts.as_dict()))["a"]["kept"] == len(kept)


def test_counts_grow_with_the_pass(tmp_path: Path) -> None:
    texts = corpus(tmp_path, {"a": [["x", "y"], ["z"]], "b": singles("b", 1)})
    assert [(text.text, texts.counts.kept) for text in texts] == [
        ("x", 1),
        ("y", 2),
        ("b0", 3),
        ("z", 4),
    ]


def test_the_texts_of_a_row_stay_neighbours_in_a_mix(tmp_path: Path) -> None:
    sources = {
        name: [[f"{name}{i}.{k}" for k in range(1 + i % 4)] for i in range(60)] for name in "abc"
    }
    order = {text: i for i, text in enumerate(shown(corpus(tmp_path, sources, weights={"a": 5})))}
    for group in chain.from_iterable(sources.values()):
        assert [order[text] for text in group] == list(
            range(order[group[0]], order[group[0]] + len(group))
        )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_after_every_round_of_the_weights_the_mix_is_exact(weights: list[int]) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    rounds = 4
    with tempfile.TemporaryDirectory() as folder:
        texts = corpus(
            Path(folder),
            {name: singles(name, 40) for name in names},
            weights=dict(zip(names, weights, strict=True)),
            texts=rounds * sum(weights),
        )
        sources = [text.source for text in texts]
    for n in range(1, rounds + 1):
        so_far = Counter(sources[: n * sum(weights)])
        assert [so_far[name] for name in names] == [n * weight for weight in weights]


def test_shares_count_texts_kept_not_rows_or_duplicates(tmp_path: Path) -> None:
    sources = {
        "groups": [[f"g{i}.{k}" for k in range(5)] for i in range(400)],
        "twice": [row for row in singles("t", 1000) for _ in range(2)],
    }
    texts = corpus(tmp_path, sources, weights={"groups": 0.25, "twice": 0.75}, texts=1000)
    balance = list(
        accumulate(0.75 if text.source == "groups" else -0.25 for text in texts)
    )  # texts of `groups` beyond its share
    assert max(map(abs, balance)) <= 5
    assert texts.counts.sources["twice"].duplicates > 700


def test_a_rare_source_waits_until_its_share_is_due(tmp_path: Path) -> None:
    sources = {"rare": singles("r", 5), "b": singles("b", 99)}
    texts = list(corpus(tmp_path, sources, weights={"rare": 1, "b": 49}, texts=50))
    assert [i for i, text in enumerate(texts) if text.source == "rare"] == [24]


def test_a_source_that_runs_out_leaves_the_others_their_proportions(tmp_path: Path) -> None:
    sources = {"a": singles("a", 10), "b": singles("b", 300), "c": singles("c", 100)}
    texts = list(corpus(tmp_path, sources, weights={"a": 6, "b": 3, "c": 1}))
    assert len(texts) == 410
    assert Counter(t.source for t in texts[:10]) == {"a": 6, "b": 3, "c": 1}
    assert Counter(t.source for t in texts[:310]) == {"a": 10, "b": 225, "c": 75}


def test_a_corpus_stops_at_the_number_of_texts_asked_for(tmp_path: Path) -> None:
    sources = {"a": [[f"{i}.{k}" for k in range(3)] for i in range(10)]}
    texts = corpus(tmp_path, sources, texts=7)
    assert shown(texts) == [f"{i // 3}.{i % 3}" for i in range(7)]
    assert texts.counts.sources["a"].read == 3
    assert len(shown(corpus(tmp_path, sources, texts=1000))) == 30


def test_held_out_groups_go_in_whole_and_about_as_often_as_asked(tmp_path: Path) -> None:
    groups = [[f"q{i}", f"p{i}", f"n{i}"] for i in range(3000)]
    texts = list(corpus(tmp_path, {"a": groups}, held_out=0.1))
    flags = [{text.held_out for text in texts[i : i + 3]} for i in range(0, len(texts), 3)]
    assert all(len(flag) == 1 for flag in flags)
    held = sum(True in flag for flag in flags)
    assert abs(held - 300) < 4 * math.sqrt(3000 * 0.1 * 0.9)
    assert not any(text.held_out for text in corpus(tmp_path, {"a": groups}))


def test_what_is_held_out_depends_on_nothing_but_the_first_text_and_the_seed(
    tmp_path: Path,
) -> None:
    groups = singles("a", 500)
    held = {t.text for t in corpus(tmp_path, {"a": groups}, held_out=0.3) if t.held_out}
    among_others = corpus(
        tmp_path, {"b": singles("b", 99), "c": groups[::-1]}, weights={"c": 2}, held_out=0.3
    )
    assert {t.text for t in among_others if t.held_out and t.source == "c"} == held
    reseeded = corpus(tmp_path, {"a": groups}, held_out=0.3, seed=1)
    assert {t.text for t in reseeded if t.held_out} != held


def test_rows_that_begin_with_the_same_query_are_on_the_same_side(tmp_path: Path) -> None:
    groups = [[f"q{i % 50}", f"p{i}"] for i in range(500)]
    sides: dict[str, set[bool]] = {}
    for text in corpus(tmp_path, {"a": groups}, held_out=0.5):
        query = f"q{int(text.text[1:]) % 50}"
        sides.setdefault(query, set()).add(text.held_out)
    assert {len(side) for side in sides.values()} == {1}
    assert set.union(*sides.values()) == {True, False}


@given(st.binary(min_size=16, max_size=16), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0))
@settings(derandomize=True, deadline=None)
def test_what_is_held_out_stays_so_when_the_fraction_grows(
    first_id: bytes, one: float, other: float, seed: int
) -> None:
    seed %= 2**63
    small, large = sorted((one, other))
    assert is_held_out(first_id, large, seed) >= is_held_out(first_id, small, seed)
    assert not is_held_out(first_id, 0.0, seed)


def test_a_source_without_a_good_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="source 'b': expected rows with texts, found 0 rows"):
        next(iter(corpus(tmp_path, {"a": singles("a", 9), "b": []})))
    bad = corpus(tmp_path, {"a": singles("a", 9), "b": [[""], [""]]}, bad_rows="skip")
    with pytest.raises(CorpusError, match="found 2 rows, none of them good"):
        next(iter(bad))


def test_a_rare_source_that_cannot_be_read_is_refused_before_any_text(tmp_path: Path) -> None:
    texts = corpus(tmp_path, {"a": singles("a", 9), "b": [["x"]]}, weights={"b": 1e-6})
    (tmp_path / "b.jsonl").write_text('{"other": "x"}\n')
    with pytest.raises(CorpusError, match=r"b\.jsonl:1: expected a column 'texts'"):
        next(iter(texts))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"name": "a", "path": "x"}] * 2}, "names must differ, found twice: a"),
        ({"held_out": 0.6}, "less than or equal to 0.5"),
        ({"held_out": -0.1}, "greater than or equal to 0"),
        ({"texts": 0}, "greater than 0"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"bad_rows": "ignore"}, "'refuse' or 'skip'"),
        ({"shuffle": True}, "Extra inputs"),
    ],
)
def test_a_corpus_that_makes_no_sense_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CorpusSpec.model_validate({"sources": [{"name": "a", "path": "x"}], **wrong})


def test_a_spec_comes_from_toml_and_goes_through_json_unchanged() -> None:
    spec = CorpusSpec.model_validate(
        tomllib.loads("""
            texts = 8_000_000
            held_out = 0.001
            [[sources]]
            name = "web"
            dataset = "HuggingFaceFW/fineweb-edu"
            subset = "sample-100BT"
            revision = "main"
            weight = 0.8
            [[sources]]
            name = "questions"
            path = "questions/*.jsonl.gz"
            fields = ["query", "pos"]
            weight = 0.2
        """)
    )
    assert CorpusSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.sources[1].columns == ("query", "pos")
    assert all(field.description for field in CorpusSpec.model_fields.values())
    assert all(field.description for field in type(spec.sources[0]).model_fields.values())


@given(st.lists(st.binary(min_size=1, max_size=1), max_size=400))
@settings(derandomize=True, deadline=None)
def test_an_id_set_agrees_with_a_set(firsts: list[bytes]) -> None:
    ids, seen = IdSet(), set[bytes]()
    for first in firsts:
        assert ids.add(first * 16) == (first not in seen)
        seen.add(first)
    assert len(ids) == len(seen)


def test_an_id_set_grows_without_losing_or_inventing_ids() -> None:
    # The first ones all fall on the last slots, so that they wrap round to the beginning.
    ids = [(2**64 - 1 - i).to_bytes(8, "big") + bytes(8) for i in range(100)]
    ids += [text_id(f"{i}") for i in range(20_000)]
    seen = IdSet()
    assert all(seen.add(id_) for id_ in ids)
    assert not any(seen.add(id_) for id_ in ids)
    assert len(seen) == len(ids)
    assert all(seen.add(text_id(f"other {i}")) for i in range(20_000))


def test_importing_the_corpus_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'pyarrow', 'datasets', 'pandas', 'zstandard', 'torch', 'data.demo'}"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, data.corpus; print({heavy} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "set()"
