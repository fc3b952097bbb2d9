"""`jasper-student evaluate` as a person runs it: a small run, small tasks, teachers' caches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import Command, Ran, command_of
from small_caches import write_cache
from small_tasks import write_classification, write_lines, write_retrieval, write_sts, write_table
from stage_runs import stage_run

from cli import cache as cache_command
from cli import evaluate as evaluate_command
from cli import student as student_command
from cli.console import run
from student.encoding import encode
from student.evaluation.meanings import MEANINGS
from student.evaluation.task_texts import write
from student.evaluation.tasks import read
from student.evaluation.teacher_vectors import TeacherVectors
from student.model import load
from student.sweep.spec import FIGURES
from student.train import Settings, train
from teacher_cache.reader import CacheReader

TASKS = """
[[tasks]]
name = "pairs"
kind = "sts"
path = "pairs.csv"
paraphrases = ["the same: ", "alike: "]

[[tasks]]
name = "search"
kind = "retrieval"
path = "search"
instruction = "the "

[[tasks]]
name = "who"
kind = "classification"
path = "who"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_encoder: Path) -> Path:
    """A cache, a run with one stage, and three tasks."""
    folder = tmp_path_factory.mktemp("work")
    reader = CacheReader(write_cache(folder))
    # FC1, 20 wide, and the first of three reduced heads.
    off = {"similarity": 0, "relative": 0}
    heads = {"fc3": off, "fc4": off}
    asked = stage_run(reader, folder / "run", 3, heads=heads, trains=("text", "fc1", "fc2"))
    train(asked, reader, small_encoder, settings=Settings(cpu=True))
    write_sts(folder / "pairs.csv")
    write_retrieval(folder / "search")
    write_classification(folder / "who")
    (folder / "tasks.toml").write_text(TASKS)
    return folder


@pytest.fixture
def evaluate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command, on a stage that was not evaluated yet."""
    (folder / "run" / "stage-3" / "evaluation.json").unlink(missing_ok=True)
    ran = command_of(student_command.app, "jasper-student", monkeypatch, capsys)
    return lambda *arguments: ran("evaluate", *arguments)


def call(app: typer.Typer, *arguments: object) -> None:
    """A command that comes through, in this process, for fixtures of the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run(app)
    assert end.value.code == 0


@pytest.fixture(scope="module")
def teachers(folder: Path) -> Path:
    """The cache that the written recipe makes, by the commands that are named."""
    recipe = folder / "texts" / "recipe.toml"
    call(student_command.app, "evaluate", folder / "run", "--tasks", folder / "tasks.toml",
         "--write-texts", folder / "texts")  # fmt: skip
    call(cache_command.app, "build", "--recipe", recipe, "--out", folder / "teachers")
    return folder / "teachers"


def answer(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_what_was_measured_before_stays_in_the_file(folder: Path, evaluate: Command) -> None:
    run, file = folder / "run", folder / "run" / "stage-3" / "evaluation.json"
    first = answer(evaluate(run, "--tasks", folder / "tasks.toml", "--heads", "fc2", "--json"))
    again = answer(evaluate(run, "--classification", folder / "who", "--heads", "fc1", "--json"))
    assert {row["vector"] for row in again["tasks"]} == {"init", "pooled", "fc1"}
    others = [row for row in first["tasks"] if row["task"] != "who"]
    whole = json.loads(file.read_text())
    assert whole["tasks"] == [*others, *again["tasks"]]
    assert whole["instructions"] == first["instructions"]
    for part in ("widths", "retention", "asymmetric"):
        assert whole[part] == {**first[part], **again[part]}
    assert list(again["retention"]) == ["init", "pooled", "fc1"]


def test_held_out_rows_are_measured_for_heads_and_the_prefixes_as_wide(
    folder: Path, evaluate: Command
) -> None:
    found = answer(evaluate(folder / "run", "--json"))
    assert found == json.loads((folder / "run" / "stage-3" / "evaluation.json").read_text())
    assert list(found) == ["stage", "cache", "rows", "widths", "retention", "asymmetric"]
    assert found["widths"] == {
        "init": 32, "pooled": 32, "fc1": 20, "fc2": 6, "fc1[:6]": 6, "fc1[:4]": 4, "fc1[:3]": 3,
    }  # fmt: skip
    names = {"all teachers", "left", "right"}
    measures = ["cosine", "spearman", "pair_order", "recall@1", "recall@10"]
    for vector, teachers in found["retention"].items():
        assert set(teachers) == names
        for figures in teachers.values():
            assert list(figures) == measures
            assert (figures["cosine"] is None) == (vector != "fc1")
    assert set(found["asymmetric"]) == {"fc1"}
    assert set(found["asymmetric"]["fc1"]) == names


def test_tables_have_what_the_json_has(folder: Path, evaluate: Command) -> None:
    printed = evaluate(folder / "run", "--tasks", folder / "tasks.toml", "--heads", "fc1")
    assert printed.code == 0, printed.err
    found = json.loads((folder / "run" / "stage-3" / "evaluation.json").read_text())
    for row in found["tasks"]:
        # Under a paraphrase a score is one of those that the spread is of.
        if row["instruction"] not in ("the same: ", "alike: "):
            assert f"{row['score']:.4f}" in printed.out
    for row in found["instructions"]:
        assert f"{row['mean']:.4f}" in printed.out
    assert f"{found['asymmetric']['fc1']['left']['recall@10']:.4f}" in printed.out


def test_tasks_have_a_row_for_every_vector_measure_and_instruction(
    folder: Path, evaluate: Command
) -> None:
    found = answer(evaluate(folder / "run", "--tasks", folder / "tasks.toml", "--heads",
                            "fc1,fc1[:5]", "--json"))  # fmt: skip
    rows = found["tasks"]
    assert {row["vector"] for row in rows} == {"init", "pooled", "fc1", "fc1[:5]"}
    assert len(rows) == 4 * (3 + 2 + 1)
    assert {row["measure"] for row in rows} == {"spearman", "ndcg@10", "recall@100", "accuracy"}
    assert {row["of"] for row in rows} == {"student"}
    assert all(row["share"] is None and row["standard_error"] >= 0 for row in rows)
    assert {row["instruction"] for row in rows if row["task"] == "search"} == {"the "}
    assert {(row["task"], row["instructions"]) for row in found["instructions"]} == {("pairs", 3)}


def test_without_held_out_rows_the_tasks_alone_are_measured(
    folder: Path, evaluate: Command, small_encoder: Path, tmp_path: Path
) -> None:
    reader = CacheReader(write_cache(tmp_path, texts=100, held_out=0.0))
    train(stage_run(reader, tmp_path / "run", 1, steps=1), reader, small_encoder,
          settings=Settings(cpu=True))  # fmt: skip
    refused = evaluate(tmp_path / "run")
    assert refused.code == 2
    assert "has no held-out rows: set corpus.held_out" in refused.err
    told = evaluate(tmp_path / "run", "--sts", folder / "pairs.csv")
    assert (told.code, "the tasks alone are measured" in told.err) == (0, True)
    found = json.loads((tmp_path / "run" / "stage-1" / "evaluation.json").read_text())
    assert list(found) == ["stage", "cache", "tasks", "instructions"]


def test_teachers_are_scored_on_the_same_texts_and_searched_by_the_student(
    folder: Path, teachers: Path, evaluate: Command
) -> None:
    reader = CacheReader(teachers)
    recipe = (folder / "texts" / "recipe.toml").read_text()
    assert '"search-queries" = "the "' in recipe
    assert reader.manifest.held_out_rows == 0
    found = answer(evaluate(folder / "run", "--tasks", folder / "tasks.toml", "--heads", "fc1",
                            "--teacher-cache", teachers, "--json"))  # fmt: skip
    rows = found["tasks"]
    names = ["all teachers", "left", "right"]
    of = [row for row in rows if row["measure"] == "ndcg@10" and row["of"] != "student"]
    assert [row["of"] for row in of] == names
    assert [row["vector"] for row in of] == ["teacher"] * 3
    assert [row["instruction"] for row in of] == ["the "] * 3

    (mine,) = (r for r in rows if r["measure"] == "ndcg@10" and r["vector"] == "fc1"
               and not r["asymmetric"])  # fmt: skip
    assert mine["share"] == pytest.approx(mine["score"] / of[0]["score"])
    across = [row for row in rows if row["measure"] == "ndcg@10" and row["asymmetric"]]
    assert [row["documents_of"] for row in across] == names
    assert {(row["vector"], row["of"]) for row in across} == {("fc1", "student")}
    right = across[2]
    assert right["share"] == pytest.approx(right["score"] / of[2]["score"])
    assert right["score"] == pytest.approx(across_by_hand(folder, reader, "right", slice(12, 20)))


def across_by_hand(folder: Path, reader: CacheReader, teacher: str, columns: slice) -> float:
    """nDCG@10 of the student's queries among a teacher's vectors, which are found by their text."""
    texts = reader.texts(range(len(reader)))
    vectors = reader.vectors(range(len(reader)), [teacher]).astype(np.float64)
    corpus, queries = (
        [json.loads(line)["text"] for line in (folder / "search" / name).read_text().splitlines()]
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    documents = np.stack([vectors[texts.index(text)] for text in corpus])
    student = load(folder / "run" / "stage-3" / "model")
    asked = encode(student, [f"the {text}" for text in queries], ["fc1"])["fc1"][:, columns]
    each = []
    for number, query in enumerate(asked.astype(np.float64)):
        ranked = np.argsort(-(documents @ query))[:10].tolist()
        gains = {number: 2, number + 1: 1}
        dcg = sum(gains.get(d, 0) / np.log2(place + 2) for place, d in enumerate(ranked))
        each.append(dcg / (2 + 1 / np.log2(3)))
    return float(np.mean(each))


def test_the_cache_of_another_model_is_refused(
    folder: Path, teachers: Path, evaluate: Command, tmp_path: Path
) -> None:
    other = write_cache(tmp_path, texts=60)
    ran = evaluate(folder / "run", "--sts", folder / "pairs.csv", "--teacher-cache", other)
    assert ran.code == 2
    assert "its teacher 'left'" in ran.err
    assert "is not the one the student learned from" in ran.err


def test_texts_that_no_teacher_cache_holds_are_named(
    folder: Path, teachers: Path, evaluate: Command, tmp_path: Path
) -> None:
    table = [("sentence1", "sentence2", "score"), ("a new one", "the river", 1), ("a", "b", 2)]
    path = write_table(tmp_path / "new.csv", table)
    ran = evaluate(folder / "run", "--sts", path, "--teacher-cache", teachers)
    assert ran.code == 2
    assert "no vector of 4 of the 4 texts new-texts, for instance 'a new one'" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_cache_of_one_of_the_teachers_gives_that_ones_scores(
    folder: Path, teachers: Path, evaluate: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    build = command_of(cache_command.app, "jasper-cache", monkeypatch, capsys)
    alone = tmp_path / "right"
    made = build("build", "--recipe", folder / "texts" / "recipe.toml", "--out", alone,
                 "--teachers", "right")  # fmt: skip
    assert made.code == 0, made.err
    found = answer(evaluate(folder / "run", "--tasks", folder / "tasks.toml", "--heads", "fc2",
                            "--teacher-cache", alone, "--json"))  # fmt: skip
    assert {row["of"] for row in found["tasks"]} == {"student", "right"}
    assert all(row["share"] for row in found["tasks"] if row["of"] == "student")
    # Only FC1 speaks the teacher's space.
    assert not any(row["asymmetric"] for row in found["tasks"])


def test_a_row_with_the_role_of_the_text_is_preferred(
    folder: Path, teachers: Path, tmp_path: Path
) -> None:
    """Of a text that is query and document, each has the vector of its own source and prompt."""
    text = "the river"
    path = write_retrieval(tmp_path / "both", qrels={"q0": {"d0": 1}})
    write_lines(path / "corpus.jsonl", [{"_id": "d0", "text": text}])
    write_lines(path / "queries.jsonl", [{"_id": "q0", "text": text}])
    (tmp_path / "tasks.toml").write_text(
        f'[[tasks]]\nname = "both"\nkind = "retrieval"\npath = "{path}"\ninstruction = "find "'
    )
    (task,) = read(tmp_path / "tasks.toml")
    blocks = CacheReader(folder / "cache").blocks()
    caches = []
    for role in ("documents", "queries"):
        recipe = write(tmp_path / role, [task], blocks, folder / "cache")
        # One source alone, so that its text is encoded as what it is there.
        parts = recipe.read_text().split("\n\n")
        kept = [part for part in parts if "[[corpus" not in part or f"-{role}" in part]
        prompt = '"both-queries" = "find "'
        told = "\n\n".join(kept).replace("" if role == "queries" else f", {prompt}", "")
        recipe.write_text(told)
        call(cache_command.app, "build", "--recipe", recipe, "--out", tmp_path / f"{role}-cache")
        caches.append(tmp_path / f"{role}-cache")
    rows = [CacheReader(cache).vectors([0], ["left"]) for cache in caches]
    assert not np.array_equal(*rows)
    for order in (caches, caches[::-1]):
        embed = TeacherVectors(order, blocks, [task]).of(task)
        for role, expected in zip(("documents", "queries"), rows, strict=True):
            assert np.array_equal(embed([text], role)["left"], expected)


def test_a_cache_that_was_moved_is_asked_for_by_its_option(
    folder: Path, evaluate: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    moved = shutil.copytree(folder / "cache", tmp_path / "moved")
    record = run / "stage-3" / "run.json"
    gone = record.read_text().replace(str(folder / "cache"), str(tmp_path / "gone"))
    record.write_text(gone)
    asked = evaluate(run)
    assert asked.code == 2
    assert "gone any more; give it as --cache" in asked.err
    assert evaluate(run, "--cache", moved, "--json").code == 0


def test_without_the_model_that_a_run_began_with_all_else_is_measured(
    folder: Path, evaluate: Command, small_encoder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    record = run / "stage-3" / "run.json"
    record.write_text(record.read_text().replace(str(small_encoder), str(tmp_path / "gone")))
    whole = answer(evaluate(folder / "run", "--sts", folder / "pairs.csv", "--json"))
    told = evaluate(run, "--sts", folder / "pairs.csv", "--json")
    assert "gone is gone: nothing is told of the untrained student" in told.err
    found = answer(told)
    assert whole["retention"].pop("init")
    assert found["retention"] == whole["retention"]
    assert found["tasks"] == [row for row in whole["tasks"] if row["vector"] != "init"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "fc4"), "the run has not trained 'fc4'; it can give fc1, fc2, pooled"),
        (("--heads", "fc1[:20]"), "fc1[:20] is no part of fc1, which is 20 wide"),
        (("--heads", "fc1[5]"), "'fc1[5]' is no head"),
        (("--sts", "nowhere.csv"), "nowhere.csv: expected a file"),
        (("--retrieval", "nowhere"), "expected one file corpus.csv, .tsv or .jsonl, found none"),
        (("--tasks", "nowhere.toml"), "nowhere.toml is no readable TOML file"),
        (("--teacher-cache", "x"), "--write-texts and --teacher-cache go with tasks"),
        (("--sts", "{folder}/pairs.csv", "--teacher-cache", "x"), "x is no cache"),
        (("--sts", "{folder}/pairs.csv", "--write-texts", "{folder}"), "is not an empty folder"),
        (("--tasks", "{folder}/tasks.toml", "--sts", "{folder}/pairs.csv"), "named 'pairs'"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    folder: Path,
    evaluate: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    message: str,
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("student.model.load", loaded)
    ran = evaluate(folder / "run", *(part.format(folder=folder) for part in arguments))
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert message in ran.err


def test_what_can_be_refused_is_refused_without_torch(folder: Path, teachers: Path) -> None:
    lines = (folder / "pairs.csv").read_text().splitlines()
    broken = folder / "broken.csv"
    broken.write_text("\n".join([*lines[:5], lines[5].rsplit(",", 1)[0] + ",high"]))
    script = (
        "import sys; sys.argv = ['jasper-student', *sys.argv[1:]]\n"
        "from cli.student import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", folder / "run", "--sts", broken,
         "--teacher-cache", teachers],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "2 False", done.stderr
    assert "broken.csv:6: expected a number in 'score', found 'high'" in done.stderr


def test_the_help_says_of_every_measure_what_reports_and_cards_say() -> None:
    told = " ".join((evaluate_command.evaluate.__doc__ or "").split())
    assert tuple(MEANINGS) == FIGURES
    for name, meaning in MEANINGS.items():
        assert f" {name}: {meaning}. " in told
