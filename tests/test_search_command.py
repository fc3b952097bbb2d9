"""`jasper-cache search` as people run it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from jobs import contents, copy
from typer.testing import CliRunner

import teacher_cache.search
from cli.cache import app
from cli.console import run
from teacher_cache.reader import CacheReader
from teacher_cache.search import TOGETHER, search, views


class Ran(NamedTuple):
    """How a search ended, and what it printed."""

    code: object
    out: str
    err: str


Ask = Callable[..., Ran]


@pytest.fixture
def ask(
    cache: CacheReader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Search the small cache in this process, by the function that the entry point calls."""

    def ran(*arguments: object, of: Path | None = None) -> Ran:
        line = ["jasper-cache", "search", str(of or cache.path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(app)
        return Ran(end.value.code, *capsys.readouterr())

    return ran


def test_row_id_and_text_of_the_cache_are_the_same_question(cache: CacheReader, ask: Ask) -> None:
    shown = ask(17, "-k", 3)
    (id_,), (text,), (source,) = cache.ids([17]), cache.texts([17]), cache.sources([17])
    assert shown == (0, shown.out, "")
    assert shown.out.startswith("row 17: ")
    assert shown.out.endswith("compared with all 56 rows\n")
    for same in ([id_], [text], [text, "--source", source]):
        assert ask(*same, "-k", 3) == shown
    found = search(cache, cache.vectors([17])[0], views(cache), 3, own=17)
    for each in found.values():
        for row, similarity in zip(each.rows, each.similarities, strict=True):
            assert f"row {row} " in shown.out
            assert f"{similarity:.3f}" in shown.out
    assert f"bert and lsa share {len({*found['bert'].rows} & {*found['lsa'].rows})} of 3" in (
        shown.out
    )


def test_json_has_all_that_was_found(cache: CacheReader, ask: Ask) -> None:
    answer = json.loads(ask(17, "--json").out)
    found = search(cache, cache.vectors([17])[0], views(cache), 10, own=17)
    assert list(answer["neighbours"]) == ["bert", "lsa", TOGETHER]
    for name, each in found.items():
        assert answer["neighbours"][name] == [
            dict(zip(("row", "similarity", "id", "source", "text"), facts, strict=True))
            for facts in zip(
                each.rows.tolist(),
                each.similarities.tolist(),
                cache.ids(each.rows),
                cache.sources(each.rows),
                cache.texts(each.rows),
                strict=True,
            )
        ]
    common = len({*found["bert"].rows} & {*found["lsa"].rows})
    assert answer["overlap"] == [{"teachers": ["bert", "lsa"], "share": common / 10}]
    assert answer["query"] == {"text": cache.texts([17])[0], "row": 17}
    assert (answer["identity"], answer["index"]) == (cache.identity, None)
    assert list(json.loads(ask(17, "--json", "--teachers", "ls").out)["neighbours"]) == ["lsa"]


def test_number_as_a_text_and_a_new_text_are_encoded(cache: CacheReader, ask: Ask) -> None:
    for words in (["7", "--text"], ["the captain opened\x1b[2J\u202e a window"]):
        shown = ask(*words, "-k", 2, "--teachers", "bert", "--device", "cpu")
        assert shown.code == 0, shown.err
        assert shown.out.startswith("a new text: ")
        assert shown.err.startswith("encoding the text with bert from ")
        assert not {"\x1b", "\u202e"} & set(shown.out)
    (text,), (source,) = cache.texts([3]), cache.sources([3])
    other = {"web": "asked", "asked": "web"}[source]
    encoded = ask(text, "--source", other, "--device", "cpu")
    assert encoded.out.startswith("a new text: ")
    for same in (3, *cache.ids([3])):
        assert ask(same, "--source", other, "--device", "cpu") == encoded


def test_large_cache_gets_an_index_beside_it_once(
    cache: CacheReader, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copy(cache.path, tmp_path / "own")
    monkeypatch.setattr(teacher_cache.search, "EXACT_BYTES", 1000)
    before = contents(own)
    compared = ask(17, "--exact", of=own)
    assert compared.out.endswith("compared with all 56 rows\n")
    assert contents(own) == before
    first = ask(17, of=own)
    assert f"the index in {own / 'search'} is not there yet: making it for 56 rows" in first.err
    after = contents(own)
    assert set(after) - set(before) == {
        "search/index.faiss",
        "search/ids.bin",
        "search/index.json",
    }
    assert ask(17, of=own) == (0, first.out, "")
    assert contents(own) == after
    head = compared.out.splitlines()[:-1]
    assert first.out.splitlines()[:-1] == head
    assert "recall@10 of the index: bert 1.000, lsa 1.000, together 1.000; " in first.out
    elsewhere = ask(cache.texts([17])[0], "--index", tmp_path / "index", "--json")
    assert json.loads(elsewhere.out)["index"]["recall"]["lsa"] == 1
    assert (tmp_path / "index" / "index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["56"], "has the rows 0 to 55, asked for 56; if it is a text, add --text"),
        ([""], "expected a row number, an id or a text, found an empty one"),
        ([" \n"], "found an empty one"),
        (["0" * 31 + "a"], "has no row with the id 0000"),
        (["1" * 32], "has no row with the id 1111"),
        (["1" * 18], "has the rows 0 to 55, asked for 1111"),
        (["1", "--teachers", "stella"], "has no teacher 'stella'; it has bert, lsa"),
        (["1", "--teachers", "lsa,lsa"], "each once, found lsa, lsa"),
        (["text", "--source", "books"], "no texts of the source 'books'; it has asked, web"),
        (["text", "--model", "bert"], "--model is NAME=FOLDER, found 'bert'"),
        (["text", "--model", "e5=/x"], "has no teacher 'e5'; it has bert, lsa"),
        (["text", "--model", "be=/nowhere"], "has no modules.json"),
        (["1", "--exact", "--index", "x"], "--exact compares with every row"),
    ],
)
def test_what_cannot_be_asked_is_one_line(arguments: list[str], words: str, ask: Ask) -> None:
    refused = ask(*arguments)
    assert (refused.code, refused.out) == (2, "")
    (line,) = refused.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_no_cache_and_no_neighbour_at_all_are_refused(ask: Ask, tmp_path: Path) -> None:
    assert "is no cache" in ask(1, of=tmp_path).err
    assert ask(1, "-k", 0).code == 2


def test_help_has_examples() -> None:
    shown = CliRunner().invoke(app, ["search", "--help"]).output
    assert "jasper-cache search cache/ 17" in " ".join(shown.split())
