"""`jasper-cache join`, `merge`, `export` and `build --format` as people run them."""

from pathlib import Path

import pytest
from commands import Command, Ran, command_of
from jobs import contents, corpus, lsa, made, write_corpus

from cli.cache import app
from teacher_cache.reader import CacheReader


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(app, "jasper-cache", monkeypatch, capsys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`left` and `right` hold the same texts; `more` others under the teacher of `left`."""
    folder = tmp_path_factory.mktemp("exchange")
    write_corpus(folder)
    made(folder / "left", corpus(folder, texts=30), [lsa(name="left", licence="mit")])
    made(folder / "right", corpus(folder, texts=30), [lsa(name="right", width=5, sample=20)])
    fitted = str(folder / "left" / "teachers" / "left")
    made(folder / "more", corpus(folder, seed=1), [lsa(name="left", licence="mit", path=fitted)])
    return folder


def assert_refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, ran
    line = ran.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert ran.out == ""


def test_join_tells_what_it_made_and_says_so_again(
    command: Command, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    ran = command("join", place / "left", place / "right", "--out", out)
    identity = CacheReader(out).identity
    assert ran.out == (
        f"{out}: 30 rows × 13 in 2 shards, {len(CacheReader(out).held_out_rows)} held out, "
        f"identity {identity} (teachers left, right)\n"
    )
    assert [line.split(":")[0] for line in ran.err.splitlines()[::2]] == [
        "comparing", "planning", "writing"
    ]  # fmt: skip
    before = contents(out)
    again = command("join", place / "left", place / "right", "--out", out)
    assert (again.code, again.out) == (0, ran.out)
    assert contents(out) == before
    assert command("verify", out).code == 0
    pooled = command("join", place / "left", place / "right", "--out", out, "--keep-pooled", "ri")
    assert_refused(pooled, "none of the caches keeps the pooled state of right; kept are those of")


def test_merge_tells_where_rows_come_from_and_what_was_left_out(
    command: Command, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    ran = command("merge", place / "left", place / "more", "--out", out, "--format", "parquet")
    assert ran.code == 0
    first, more, found = (CacheReader(path) for path in (place / "left", place / "more", out))
    held_out = {*first.ids(first.held_out_rows), *more.ids(more.held_out_rows)}
    given = [set(cache.ids(range(len(cache)))) for cache in (first, more)]
    leaks = sum(id_ in held_out for c in (first, more) for id_ in c.ids(c.train_rows))
    twice = len(first) + len(more) - len(given[0] | given[1]) - leaks
    assert len(found) == len(given[0] | given[1])
    assert leaks and twice  # noqa: PT018  # both happen
    told = ran.out.splitlines()[-1]
    assert told.endswith(
        f"left out: {twice} that came before, {leaks} that another cache holds out"
    )
    assert {shard.format for shard in found.manifest.shards} == {"parquet"}
    assert command("verify", out).code == 0
    assert "asked" in command("inspect", out).out


def test_export_tells_size_and_licences(command: Command, place: Path, tmp_path: Path) -> None:
    ran = command("export", place / "left", tmp_path / "out", "--parquet")
    assert ran.code == 0
    assert ran.out.startswith(f"{tmp_path / 'out'}: 30 rows of left as Parquet, ")
    assert ran.out.endswith("\nlicence of left: mit\n")
    assert_refused(
        command("export", place / "left", tmp_path / "out"), "out is not an empty folder"
    )
    unknown = command("export", place / "left", tmp_path / "other", "--teachers", "lefd")
    assert_refused(unknown, "has no teacher 'lefd'; it has left")
    short = command("export", place / "left", tmp_path / "short", "--teachers", "le")
    assert short.out.startswith(f"{tmp_path / 'short'}: 30 rows of left as Parquet, ")


@pytest.mark.parametrize("verb", ["join", "merge"])
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    verb: str, command: Command, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    alone = command(verb, place / "left", "--out", out)
    assert_refused(alone, f"expected two or more caches to {verb}, found {place / 'left'} alone")
    other = {"join": "more", "merge": "right"}[verb]
    hint = {"join": "jasper-cache merge", "merge": "jasper-cache join"}[verb]
    assert_refused(command(verb, place / "left", place / other, "--out", out), hint)
    gone = command(verb, place / "left", tmp_path / "gone", "--out", out)
    assert_refused(gone, "gone is no cache")
    assert not out.exists()


def test_build_writes_parquet_and_the_other_format_is_then_refused(
    command: Command, place: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[corpus]\n[[corpus.sources]]\nname = "web"\npath = "web.jsonl"\n'
        '[[teachers]]\nname = "tfidf-svd"\nwidth = 8\nsample = 30\n'
    )
    line = ("build", "--recipe", recipe, "--out", tmp_path / "cache")
    built = command(*line, "--format", "parquet")
    assert built.code == 0
    assert list((tmp_path / "cache" / "shards").glob("*.parquet"))
    assert command(*line).out == built.out
    assert_refused(command(*line, "--format", "arrow"), "has parquet shards, arrow is asked for")
    assert command("verify", tmp_path / "cache").code == 0
