"""A plan is the same whether or not it was broken off, and going on reads nothing twice."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import lsa, made
from planning import (
    ROWS_PER_SHARD,
    TEXTS,
    TEXTS_OF_TRIALS,
    contents,
    mixed_corpus,
    write_sources,
)
from test_sources import packed, write

from data import demo, files
from data.corpus import Corpus, CorpusError, CorpusSpec, Text
from teacher_cache.format import CacheError, Plan
from teacher_cache.plan import make_plan, read_plan, read_texts


class Killed(Exception):
    pass


def kill_after(texts: int) -> Callable[[int], None]:
    """Stop a planner dead after so many texts."""
    told = 0

    def on_text(amount: int) -> None:
        nonlocal told
        told += amount
        if told >= texts:
            raise Killed

    return on_text


def planned(cache: Path, texts: Corpus, on_text: Callable[[int], None] = lambda _: None) -> Plan:
    return make_plan(cache, texts, rows_per_shard=ROWS_PER_SHARD, on_text=on_text, save_every=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, and `whole`: their plan, never disturbed."""
    folder = tmp_path_factory.mktemp("planned")
    write_sources(folder)
    planned(folder / "whole", mixed_corpus(folder))
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Sources that a test may change."""
    write_sources(tmp_path)
    return tmp_path


def test_plan_holds_the_corpus_in_its_order_held_out_texts_last(place: Path) -> None:
    plan = read_plan(place / "whole")
    assert plan is not None
    corpus = mixed_corpus(place)
    texts = sorted(corpus, key=lambda text: text.held_out)
    columns = [read_texts(place / "whole", plan, i) for i in range(len(plan.shards))]
    assert [id_ for column in columns for id_ in column.ids] == [text.id for text in texts]
    assert [text for column in columns for text in column.texts] == [text.text for text in texts]
    assert plan.counts == corpus.counts.as_dict()
    assert plan.held_out_rows == sum(text.held_out for text in texts) > 0
    totals = [
        sum(c[name] for c in plan.counts.values()) for name in next(iter(plan.counts.values()))
    ]
    assert all(totals[:-2]), "the sources are to show every way that a text can go"


@pytest.mark.parametrize("save_every", [1, 3])
@pytest.mark.parametrize("after", [1, 17, 60, 100, 150])
def test_plan_broken_off_after_any_text_ends_byte_for_byte_the_same(
    after: int, save_every: int, place: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    with pytest.raises(Killed):
        make_plan(
            tmp_path,
            mixed_corpus(place),
            rows_per_shard=ROWS_PER_SHARD,
            on_text=kill_after(after),
            save_every=save_every,
        )
    planned(tmp_path, mixed_corpus(place), told.append)
    assert contents(tmp_path) == contents(place / "whole")
    assert sum(told) == TEXTS
    if save_every == 1 and after > 60:
        # Not told again one by one: at most a shard and the texts held out beside it.
        assert told[0] > after - 2 * ROWS_PER_SHARD


def test_pass_goes_on_behind_any_text_with_the_same_texts_and_counts(place: Path) -> None:
    corpus = mixed_corpus(place, texts=None)
    running = corpus.start()
    states = [running.state()]
    texts: list[Text] = []
    for text in running:
        texts.append(text)
        states.append(json.loads(json.dumps(running.state())))
    counts = corpus.counts.as_dict()
    assert len(texts) > 300
    for after in range(0, len(states), 11):
        seen = [(text.id, text.text) for text in texts[:after]]
        again = mixed_corpus(place, texts=None)
        assert list(again.start(states[after], seen)) == texts[after:]
        assert again.counts.as_dict() == counts


def test_state_too_large_to_be_read_is_not_saved_and_costs_a_new_start(tmp_path: Path) -> None:
    """In the middle of a row of 48 MB."""
    texts = [f"{number} " + "long words and more " * 26_000 for number in range(96)]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": texts}))
    spec = CorpusSpec.model_validate({"sources": [{"name": "a", "path": "a.jsonl"}]})

    def told_until(texts: int) -> list[int]:
        told, stop = [], kill_after(texts)
        with suppress(Killed):
            planned(tmp_path / "c", Corpus(spec, tmp_path), lambda n: (told.append(n), stop(n))[1])
        return told

    assert told_until(20) == [1] * 20
    assert told_until(90) == [1] * 90
    assert told_until(97) == [80, *[1] * 16]
    plan = read_plan(tmp_path / "c")
    assert plan is not None
    assert plan.rows == 96


FORMATS = [
    *(f"a{suffix}{packing}" for suffix in (".jsonl", ".csv", ".txt") for packing in ("", ".gz")),
    *("a.tsv.zst", "a.parquet", "hub"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_reading_goes_on_behind_any_row_of_any_format(name: str, tmp_path: Path) -> None:
    texts = [f"text {i}, line one\nline two" for i in range(23)]
    source: dict[str, Any] = {"name": "a", "path": name}
    if name == "hub":
        source = {"name": "a", "dataset": "./hub"}
        (tmp_path / "hub").mkdir()
    if name == "hub" or name.endswith(".parquet"):
        path = tmp_path / (name if name != "hub" else "hub/train.parquet")
        pq.write_table(pa.table({"text": texts}), path, row_group_size=5)
    elif ".txt" in name:
        source["unit"] = "paragraph"
        (tmp_path / name).write_bytes(packed(name, "\n\n".join(texts).encode()))
    else:
        write(tmp_path / name, texts)
    corpus = Corpus(CorpusSpec.model_validate({"sources": [source]}), tmp_path)
    running = corpus.start()
    seen: list[tuple[bytes, str]] = []
    for text in running:
        seen.append((text.id, text.text))
        rest = [text.text for text in corpus.start(running.state(), seen)]
        assert rest == texts[len(seen) :]
    assert len(seen) == 23


def test_reading_goes_on_in_generated_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGES", ())
    monkeypatch.setattr(demo, "_modules", lambda: iter([Path(demo.__file__), Path(files.__file__)]))
    source = {"name": "docs", "generator": "python-docstrings"}
    corpus = Corpus(CorpusSpec.model_validate({"sources": [source]}))
    running = corpus.start()
    seen = [next(running) for _ in range(3)]
    state = running.state()
    rest = list(running)
    assert rest
    assert list(corpus.start(state, [(text.id, text.text) for text in seen])) == rest


def test_column_that_no_row_had_so_far_is_still_the_columns_fault(tmp_path: Path) -> None:
    rows = ['{"text": "good"}', '{"other": "bad"}', '{"text": "good too"}', '{"other": "bad"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": "b"}\n')
    sources = [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "b.jsonl"}]
    spec = CorpusSpec.model_validate({"sources": sources, "bad_rows": "skip"})
    running = Corpus(spec, tmp_path).start()
    first = next(running)
    state = running.state()
    assert state["sources"]["a"]["position"]["found_text"]
    again = Corpus(spec, tmp_path)
    rest = [text.text for text in again.start(state, [(first.id, first.text)])]
    assert rest == ["b", "good too"]
    assert again.counts.sources["a"].skipped == 2
    assert again.counts.sources["b"].skipped == 1


def test_files_before_the_place_are_not_opened_again(own: Path) -> None:
    corpus = mixed_corpus(own, texts=None)
    running = corpus.start()
    texts = []
    while running.state()["sources"]["local"]["position"]["file"] < 2:
        texts.append(next(running))
    state = running.state()
    rest = list(running)
    for number in (0, 1):
        path = own / "local" / f"train-{number:05d}.parquet"
        path.write_bytes(b"x" * path.stat().st_size)
    again = mixed_corpus(own, texts=None)
    assert list(again.start(state, [(text.id, text.text) for text in texts])) == rest
    with pytest.raises(CorpusError, match="expected a whole file"):
        list(mixed_corpus(own, texts=None))


def test_rows_before_the_place_are_not_parsed_again(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i}"}) for i in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    spec = CorpusSpec.model_validate({"sources": [{"name": "a", "path": "a.jsonl"}]})
    running = Corpus(spec, tmp_path).start()
    seen = [next(running) for _ in range(50)]
    lines[:50] = ["x" * len(line) for line in lines[:50]]
    path.write_text("\n".join(lines))
    again = Corpus(spec, tmp_path).start(running.state(), [(t.id, t.text) for t in seen])
    assert [text.text for text in again] == [f"text {i}" for i in range(50, 100)]


def test_files_that_changed_since_are_refused(own: Path) -> None:
    with pytest.raises(Killed):
        planned(own / "cache", mixed_corpus(own), kill_after(80))
    with (own / "pairs.jsonl.gz").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorpusError, match=r"source 'pairs': expected the files .* found others"):
        planned(own / "cache", mixed_corpus(own))


def test_unfinished_plan_of_another_corpus_is_refused(own: Path) -> None:
    cache = own / "cache"
    with pytest.raises(Killed):
        planned(cache, mixed_corpus(own), kill_after(80))
    before = contents(cache)
    with pytest.raises(
        CacheError, match=r"unfinished plan .* corpus\.seed is None in the cache, 1 now"
    ):
        planned(cache, mixed_corpus(own, seed=1))
    with pytest.raises(CacheError, match=r"rows_per_shard is 16 in the cache, 8 now"):
        make_plan(cache, mixed_corpus(own), rows_per_shard=8, on_text=lambda _: None)
    assert contents(cache) == before


@pytest.mark.parametrize("name", ["00001.arrow", "unfinished/plan/00001.arrow"])
def test_damaged_or_missing_file_of_an_unfinished_plan_is_refused(name: str, own: Path) -> None:
    cache = own / "cache"
    with pytest.raises(Killed):
        planned(cache, mixed_corpus(own), kill_after(80))
    path = cache / "plan" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CacheError, match=f"{path} has checksum"):
        planned(cache, mixed_corpus(own))
    path.unlink()
    with pytest.raises(CacheError, match=f"{path} is missing: the unfinished plan"):
        planned(cache, mixed_corpus(own))


def test_build_goes_on_with_a_plan_and_clears_what_is_no_longer_needed(own: Path) -> None:
    cache = own / "cache"
    with pytest.raises(Killed):
        planned(cache, mixed_corpus(own), kill_after(80))
    left = contents(cache)
    made(cache, mixed_corpus(own), [lsa()])
    whole = contents(cache)
    assert "plan/unfinished/state.json" in left
    assert not any("unfinished" in name for name in whole)
    for name in ("plan/unfinished/state.json", "plan/unfinished/plan/00001.arrow"):
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(left[name])
    made(cache, mixed_corpus(own), [lsa()])
    assert contents(cache) == whole


def test_planning_holds_a_shard_and_not_the_corpus(tmp_path: Path) -> None:
    def peak(texts: int) -> int:
        with (tmp_path / "a.jsonl").open("w") as file:
            for i in range(texts):
                file.write(json.dumps({"text": f"{i} " + "long words and more " * 50}) + "\n")
        source = {"name": "a", "path": "a.jsonl", "cut": 0.3}
        spec = {"sources": [source], "held_out": 0.5, "near_duplicates": "drop"}
        corpus = Corpus(CorpusSpec.model_validate(spec), tmp_path)
        tracemalloc.start()
        planned(tmp_path / f"cache-{texts}", corpus)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(50)
    few, many = peak(200), peak(1000)
    assert many - few < 300_000  # of 0.8 MB more of texts, half of them held out


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    script = Path(__file__).with_name("planning.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path_factory.mktemp("kills"))],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[dict[str, Any]]] = json.loads(result.stdout)
    return found


def test_planner_killed_at_any_file_ends_byte_for_byte_the_same(
    trials: dict[str, list[dict[str, Any]]],
) -> None:
    deaths = trials["every_call"]
    assert len(deaths) > 12
    assert [death["differs"] for death in deaths] == [[]] * len(deaths)
    done = [death["done"] for death in deaths]
    # It goes on from the last save, the further the later it died, until there is a plan.
    finished = done.index(0, done.index(max(done)))
    assert done[:finished] == sorted(done[:finished])
    assert max(done) > 0.6 * TEXTS_OF_TRIALS
    assert 2 <= len(deaths) - finished <= 12


def test_planner_killed_again_and_again_ends_byte_for_byte_the_same(
    trials: dict[str, list[dict[str, Any]]],
) -> None:
    assert all(trial["deaths"] for trial in trials["again_and_again"])
    assert all(trial["differs"] == [] for trial in trials["again_and_again"])


def test_two_planners_in_one_folder_make_one_plan(
    trials: dict[str, list[dict[str, Any]]],
) -> None:
    (result,) = trials["two_at_once"]
    assert result["differs"] == []
