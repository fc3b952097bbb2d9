"""Files of tasks that cannot be used: one line that names file, line and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from small_tasks import write_classification, write_lines, write_retrieval, write_sts, write_table

from student.evaluation.task_spec import Kind, Task, TaskError, TaskSpec
from student.evaluation.tasks import load, named_by, read


def task(kind: Kind, path: Path, **fields: object) -> Task:
    spec = TaskSpec.model_validate({"name": "t", "kind": kind, "path": str(path), **fields})
    return load(spec, Path())


STS = ("sentence1", "sentence2", "score")
QRELS = ("query-id", "corpus-id", "score")


def _sts(folder: Path, *rows: Sequence[object]) -> Path:
    return write_table(folder / "p.csv", rows)


def _retrieval(folder: Path, *judged: Sequence[object]) -> Path:
    write_retrieval(folder / "r")
    write_table(folder / "r" / "qrels" / "test.tsv", [QRELS, *judged])
    return folder / "r"


def _corpus(folder: Path, *documents: object) -> Path:
    write_retrieval(folder / "r")
    write_lines(folder / "r" / "corpus.jsonl", documents)
    return folder / "r"


def _classes(folder: Path, *rows: Sequence[object]) -> Path:
    write_classification(folder / "c")
    write_table(folder / "c" / "train.csv", rows)
    return folder / "c"


@pytest.mark.parametrize(
    ("kind", "write", "rows", "message"),
    [
        ("sts", _sts, [STS, ("a", "b", "high")], r"p\.csv:2: expected a number in 'score', found"),
        ("sts", _sts, [STS, ("a", "b", "nan")], r"p\.csv:2: expected a number in 'score'"),
        ("sts", _sts, [STS, ("a", "b", 1), ("", "b", 2)], r"p\.csv:3: expected a text in 'sent"),
        ("sts", _sts, [("a", "b", "c"), (1, 2, 3)], r"a column 'sentence1', found 'a', 'b', 'c'"),
        ("sts", _sts, [STS], r"p\.csv: expected rows, found none"),
        ("sts", _sts, [], r"p\.csv: expected rows, found none"),
        ("sts", _sts, [STS, ("a", "b", 1), ("c", "d", 1)], r"different scores, found 2"),
        ("sts", _sts, [STS, ("a", "b")], r"p\.csv:2: expected 3 cells, found 2"),
        ("retrieval", _retrieval, [("q0", "d99", 1)], r"tsv:2: 'd99' is not in the corpus of"),
        ("retrieval", _retrieval, [("q99", "d0", 1)], r"tsv:2: 'q99' is not in the queries of"),
        ("retrieval", _retrieval, [("q0", "d0", "x")], r"tsv:2: expected a number in 'score'"),
        ("retrieval", _retrieval, [("q0", "d0", 0.5)], r"tsv:2: expected a whole number in 'score"),
        ("retrieval", _retrieval, [("q0", "d0", 1), ("q0", "d0", 2)], r"tsv:3: .* judged twice"),
        ("retrieval", _retrieval, [], r"test\.tsv: expected rows, found none"),
        ("retrieval", _corpus, [{"_id": "a", "text": "b"}] * 2, r"jsonl:2: the id 'a' stands"),
        ("retrieval", _corpus, [{"id": "a", "text": "b"}], r"jsonl:1: expected a column '_id'"),
        ("retrieval", _corpus, [{"_id": "a", "text": 3}], r"jsonl:1: expected a text in 'text'"),
        ("retrieval", _corpus, ["a"], r"jsonl:1: expected a row with columns, found 'a'"),
        ("classification", _classes, [("text", "label"), ("a", "b")], r"at least two labels"),
        ("classification", _classes, [("text", "label"), ("a", "")], r"csv:2: expected a text in"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_their_line(
    tmp_path: Path, kind: Kind, write: object, rows: list[object], message: str
) -> None:
    path = write(tmp_path, *rows)  # type: ignore[operator]
    with pytest.raises(TaskError, match=message) as found:
        task(kind, path)
    assert "\n" not in str(found.value)


def test_a_whole_number_without_end_is_no_score(tmp_path: Path) -> None:
    row = {"sentence1": "a", "sentence2": "b", "score": 10**400}
    path = write_lines(tmp_path / "p.jsonl", [row])
    with pytest.raises(TaskError, match=r"p\.jsonl:1: expected a number in 'score', found 1000"):
        task("sts", path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".hidden.csv", r"hidden\.csv: its name can name no task; give it another in a tasks file"),
        ("*.csv", r"\*\.csv: expected a file, found none"),
    ],
)
def test_a_path_that_is_no_single_file_with_a_name_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    for each in (".hidden.csv", "one.csv", "two.csv"):
        write_sts(tmp_path / each)
    with pytest.raises(TaskError, match=message):
        named_by("sts", tmp_path / name)


def test_a_task_has_the_name_of_the_link_that_leads_to_it(tmp_path: Path) -> None:
    write_sts(tmp_path / "3f2a.csv")
    (tmp_path / "stsb.csv").symlink_to("3f2a.csv")
    assert named_by("sts", tmp_path / "stsb.csv").spec.name == "stsb"


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        ("retrieval", "/test", r"qrels: expected the name of a split, found '/test'"),
        ("retrieval", "", r"qrels: expected the name of a split, found ''"),
        ("classification", "train", r"task 't': the probe learns from train; give another split"),
    ],
)
def test_a_split_that_cannot_be_tested_on_is_refused(
    tmp_path: Path, kind: Kind, split: str, message: str
) -> None:
    write = write_retrieval if kind == "retrieval" else write_classification
    with pytest.raises(TaskError, match=message):
        task(kind, write(tmp_path / "t"), split=split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = 3", r"tasks\.toml: tasks: "),
        ("tasks = []", r"tasks\.toml: tasks: .* at least 1 item"),
        ("[[tasks]]\nname = 't'\nkind = 'sst'\npath = '.'", r"tasks\.0\.kind: Input should be 'st"),
        ("[[tasks]]\nname = 'a/b'\nkind = 'sts'\npath = '.'", r"tasks\.0\.name: .*no slashes"),
        ("[[tasks]]\nname = 't'\nkind = 'sts'\npath = '.'\nx = 1", r"tasks\.0\.x: Extra inputs"),
        (
            "[[tasks]]\nname = 't'\nkind = 'sts'\npath = 'nowhere.csv'",
            r"nowhere\.csv: expected",
        ),
        ("[[tasks]]\nname = 't'\nkind = 'sts'\npath = '.'", r"expected a CSV, TSV or JSONL file"),
        ("[[tasks]]\nname = 't'\nkind = 'retrieval'\npath = '.'", r"one file corpus\.csv, \.tsv o"),
        (
            "[[tasks]]\nname = 't'\nkind = 'sts'\npath = 'p.csv'\ncolumns = { third = 'x' }",
            r"task 't': columns has 'third', expected some of first, second, score",
        ),
        ("[[tasks", r"is no readable TOML file"),
    ],
)
def test_a_tasks_file_that_cannot_be_followed_is_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "tasks.toml").write_text(text)
    with pytest.raises(TaskError, match=message):
        read(tmp_path / "tasks.toml")
