import csv
import gzip
import io
import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.corpus import Corpus, CorpusError, CorpusSpec, SourceSpec

TEXTS = ["Ravens plan ahead.", 'She said "no", twice.', "Zwölf Boxkämpfer", "日本語の文", "last"]
TEXT_NAMES = [
    f"rows{suffix}{packing}"
    for suffix in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
    for packing in ("", ".gz", ".zst")
]


def texts_of(folder: Path, *, bad_rows: str = "refuse", **source: Any) -> list[str]:
    spec = CorpusSpec(sources=[SourceSpec(name="s", **source)], bad_rows=bad_rows)
    return [text.text for text in Corpus(spec, folder)]


def skipped_in(folder: Path, **source: Any) -> int:
    spec = CorpusSpec(sources=[SourceSpec(name="s", **source)], bad_rows="skip")
    corpus = Corpus(spec, folder)
    list(corpus)
    return corpus.counts.sources["s"].skipped


def refusal(folder: Path, *, bad_rows: str = "refuse", **source: Any) -> str:
    with pytest.raises(CorpusError) as refused:
        texts_of(folder, bad_rows=bad_rows, **source)
    message = str(refused.value)
    assert "\n" not in message
    assert "expected" in message
    assert "found" in message
    return message


def encoded(name: str, texts: list[str]) -> bytes:
    if ".txt" in name:
        return "".join(f"{text}\n" for text in texts).encode()
    if ".csv" in name or ".tsv" in name:
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t" if ".tsv" in name else ",")
        writer.writerows([["n", "text"], *([i, text] for i, text in enumerate(texts))])
        return table.getvalue().encode()
    return "".join(json.dumps({"n": 0, "text": text}) + "\n" for text in texts).encode()


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if name.endswith(".zst") else content


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path)
    else:
        path.write_bytes(packed(path.name, encoded(path.name, texts)))


@pytest.mark.parametrize("name", [*TEXT_NAMES, "rows.parquet", "ROWS.JSONL"])
def test_every_format_gives_the_same_texts_in_order(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, TEXTS)
    assert texts_of(tmp_path, path=name) == TEXTS


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, unique=True))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_any_text_survives_json_csv_and_parquet_to_the_character(texts: list[str]) -> None:
    texts = [text for text in texts if text.strip()] or ["a"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            write(Path(folder, name), texts)
            assert texts_of(Path(folder), path=name) == texts


def test_windows_line_ends_and_byte_order_marks_are_no_part_of_a_text(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv", "a.jsonl"):
        content = encoded(name, ["one", "two"]).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert texts_of(tmp_path, path=name) == ["one", "two"]


def test_plain_text_is_read_by_line_or_by_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n \n\nthree\n")
    assert texts_of(tmp_path, path="a.txt") == ["one", "two", "three"]
    assert texts_of(tmp_path, path="a.txt", unit="paragraph") == ["one\ntwo", "three"]


def test_a_text_may_hold_line_breaks_that_are_not_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\x0bmore\u2028more\n".encode())
    assert texts_of(tmp_path, path="a.txt") == ["one\x0bmore\u2028more"]


def test_a_folder_gives_its_readable_files_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "c" / "z.jsonl", ["last"])
    write(tmp_path / "c" / "b" / "x.parquet", ["second"])
    write(tmp_path / "c" / "a.txt.gz", ["first"])
    write(tmp_path / "c" / ".cache" / "a.jsonl", ["hidden"])
    (tmp_path / "c" / "LICENSE").write_text("no data")
    assert texts_of(tmp_path, path="c") == ["first", "second", "last"]


def test_a_glob_gives_its_matches_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "other.txt"):
        write(tmp_path / name, [name])
    assert texts_of(tmp_path, path="*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts_of(Path("/nowhere"), path=f"{tmp_path}/**/*.jsonl") == [
        "a.jsonl",
        "b.jsonl",
        "sub/c.jsonl",
    ]


def test_a_name_with_the_signs_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    write(tmp_path / "[en]" / "a[1].jsonl", ["here"])
    assert texts_of(tmp_path / "[en]", path="a[1].jsonl") == ["here"]
    assert texts_of(tmp_path / "[en]", path="a*.jsonl") == ["here"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_several_fields_give_neighbours_in_the_order_asked_for(tmp_path: Path, name: str) -> None:
    rows = [{"neg": [f"n{i}", f"m{i}"], "query": f"q{i}", "pos": f"p{i}"} for i in range(2)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    assert texts_of(tmp_path, path=name, fields=["query", "pos", "neg"]) == [
        *("q0", "p0", "n0", "m0"),
        *("q1", "p1", "n1", "m1"),
    ]


def test_a_json_line_without_columns_gives_all_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["q", "p"]\n"alone"\n')
    assert texts_of(tmp_path, path="a.jsonl") == ["q", "p", "alone"]
    message = refusal(tmp_path, path="a.jsonl", fields=["q", "p"])
    assert "a.jsonl:1: expected the columns 'q', 'p'" in message
    assert "leave fields out" in message


def test_an_empty_list_adds_nothing_to_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "q", "n": []}\n{"q": [], "n": []}\n')
    message = refusal(tmp_path, path="a.jsonl", fields=["q", "n"])
    assert "a.jsonl:2: expected at least one text, found empty lists" in message
    assert texts_of(tmp_path, path="a.jsonl", fields=["q", "n"], bad_rows="skip") == ["q"]


BAD_ROWS: dict[str, tuple[str, bytes, int, str]] = {
    "empty": ("a.jsonl", b'{"text": "a"}\n{"text": ""}\n', 2, "found an empty one"),
    "blank": ("a.jsonl", b'{"text": "a"}\n\n{"text": " \\n"}\n', 3, "found an empty one"),
    "null": ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', 2, "in column 'text', found null"),
    "number": ("a.jsonl", b'{"text": 7}\n{"text": "a"}\n', 1, "found int"),
    "list of lists": ("a.jsonl", b'{"text": "a"}\n{"text": ["b", ["c"]]}\n', 2, "found list"),
    "bare number": ("a.jsonl", b'{"text": "a"}\n7\n', 2, "a row with columns, found int"),
    "broken json": ("a.jsonl", b'{"text": "a"}\n{"text": \n', 2, "one JSON value a line"),
    "deep json": ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", 2, "one JSON value"),
    "no column later": ("a.jsonl", b'{"text": "a"}\n{"b": "c"}\n', 2, "found the columns 'b'"),
    "stray byte": ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n', 2, "found byte 0xff at char"),
    "surrogate": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', 2, "found a lone U+D800"),
    "stray byte in txt": ("a.txt", b"a\n\nb\xe9b\n", 3, "found byte 0xe9 at character 2"),
    "empty cell": (
        "a.csv",
        b'n,text\n1,"a\nb"\n"2\n3",\n',
        4,
        "in column 'text', found an empty one",
    ),
    "short row": ("a.csv", b"n,text\n1,a\n2\n", 3, "expected 2 cells, found 1"),
    "stray byte in csv": ("a.tsv", b"n\ttext\n1\ta\n2\t\xff\n", 3, "found byte 0xff"),
    "packed": ("a.jsonl.gz", b'{"text": "a"}\n{"text": ""}\n', 2, "found an empty one"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_by_file_and_line_or_counted(tmp_path: Path, case: str) -> None:
    name, content, line, found = BAD_ROWS[case]
    (tmp_path / name).write_bytes(packed(name, content))
    message = refusal(tmp_path, path=name)
    assert f"{tmp_path / name}:{line}: expected" in message
    assert found in message
    assert 'bad_rows = "skip"' in message
    assert "a" in texts_of(tmp_path, path=name, bad_rows="skip")[0]
    assert skipped_in(tmp_path, path=name) == 1


def test_a_bad_row_of_parquet_is_refused_by_its_number_or_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert "a.parquet:2: expected a text in column 'text', found null" in refusal(
        tmp_path, path="a.parquet"
    )
    assert texts_of(tmp_path, path="a.parquet", bad_rows="skip") == ["a", "b"]


def test_invalid_utf8_in_parquet_costs_its_own_row_only(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "a.parquet:2: expected valid UTF-8" in refusal(tmp_path, path="a.parquet")
    assert texts_of(tmp_path, path="a.parquet", bad_rows="skip") == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_a_wrong_field_is_refused_with_the_columns_there_are(
    tmp_path: Path, name: str, bad_rows: str
) -> None:
    write(tmp_path / name, TEXTS)
    message = refusal(tmp_path, path=name, fields="txt", bad_rows=bad_rows)
    assert str(tmp_path / name) in message
    assert "expected a column 'txt', found the columns 'n', 'text'" in message


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_cut_short_gives_its_texts_and_then_is_refused(
    tmp_path: Path, suffix: str, bad_rows: str
) -> None:
    texts = [f"text {i * i}" for i in range(50_000)]
    name = f"a.jsonl{suffix}"
    write(tmp_path / name, texts)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    spec = CorpusSpec(sources=[SourceSpec(name="s", path=name)], bad_rows=bad_rows)
    given: list[str] = []
    with pytest.raises(CorpusError, match=f"a.jsonl{suffix}:[0-9]+: expected a whole file") as cut:
        given.extend(text.text for text in Corpus(spec, tmp_path))
    passed = iter(Corpus(spec, tmp_path))
    line = int(str(cut.value).split(":")[1])
    assert 10_000 < line < 50_000
    assert [next(passed).text for _ in range(line - 1)] == texts[: line - 1]


def test_what_is_no_zst_gz_or_parquet_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl.zst", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_bytes(b'{"text": "not packed"}\n' * 9)
        assert f"{tmp_path / name}:1: expected a whole file" in refusal(tmp_path, path=name)


def test_parquet_damaged_inside_is_refused_after_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {i * i}" for i in range(4000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2000, use_dictionary=False)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    spec = CorpusSpec(sources=[SourceSpec(name="s", path="a.parquet")])
    seen: list[str] = []

    def read() -> None:
        for text in Corpus(spec, tmp_path):
            seen.append(text.text)

    with pytest.raises(CorpusError, match=r"a\.parquet:[0-9]+: expected a whole file"):
        read()
    assert 0 < len(seen) <= 2000
    assert seen == texts[: len(seen)]


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
def test_a_quote_that_is_never_closed_is_refused_where_it_opens(
    tmp_path: Path, bad_rows: str
) -> None:
    (tmp_path / "a.csv").write_text('n,text\n1,a\n2,"b\n3,c\n4,d\n')
    message = refusal(tmp_path, path="a.csv", bad_rows=bad_rows)
    assert "a.csv:3: expected a row of CSV" in message
    assert "mend its quotes" in message


def test_a_long_document_fits_a_csv_cell(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["word " * 100_000])
    assert texts_of(tmp_path, path="a.csv") == ["word " * 100_000]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("absent.jsonl", "found none"),
        ("*.jsonl", "found none"),
        ("empty", "found none"),
        ("notes.md", "found .md"),
        ("n*", "found .md"),
        ("README", "found no suffix"),
        ("rows.parquet.gz", "found .gz"),
    ],
)
def test_no_file_or_an_unknown_suffix_is_refused_with_the_supported_ones(
    tmp_path: Path, path: str, found: str
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("notes.md", "README", "rows.parquet.gz"):
        (tmp_path / name).write_text("text")
    spec = CorpusSpec(sources=[SourceSpec(name="s", path=path)])
    with pytest.raises(CorpusError) as refused:
        Corpus(spec, tmp_path)
    assert found in str(refused.value)
    assert ".jsonl .ndjson .json .csv .tsv .txt, each also with .gz or .zst, and .parquet" in str(
        refused.value
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
def test_the_first_text_comes_before_the_end_of_a_file_that_never_ends(
    tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    # Opened for reading too, so that neither end waits for the other; the pipe is never closed.
    pipe = os.open(tmp_path / name, os.O_RDWR)
    os.write(pipe, encoded(name, TEXTS))
    first: list[str] = []
    spec = CorpusSpec(sources=[SourceSpec(name="s", path=name)])
    reader = threading.Thread(
        target=lambda: first.append(next(iter(Corpus(spec, tmp_path))).text), daemon=True
    )
    reader.start()
    reader.join(timeout=20)
    os.close(pipe)
    assert first == [TEXTS[0]]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local data set must not reach for the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_a_local_data_set_streams_through_datasets(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set" / name, TEXTS)
    assert texts_of(tmp_path, dataset="./set") == TEXTS
    assert texts_of(Path("/nowhere"), dataset=f"{tmp_path}/set") == TEXTS


@pytest.mark.usefixtures("no_network")
def test_a_data_set_has_splits_columns_and_numbered_rows(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = [{"q": "a", "p": ["b", "c"]}, {"q": "", "p": ["d"]}, {"q": "e", "p": ["f"]}]
    (tmp_path / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked: dict[str, Any] = {"dataset": "./set", "split": "test", "fields": ["q", "p"]}
    assert texts_of(tmp_path, **asked, bad_rows="skip") == ["a", "b", "c", "e", "f"]
    assert "set[test]:2: expected a text in column 'q', found an empty" in refusal(
        tmp_path, **asked
    )
    asked["fields"] = "text"
    assert "set[test]:1: expected a column 'text', found the columns 'q', 'p'" in refusal(
        tmp_path, **asked
    )


@pytest.mark.usefixtures("no_network")
def test_a_data_set_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", TEXTS)
    assert "train" in refusal(tmp_path, dataset="./set", split="validation")
    assert "found nothing" in refusal(tmp_path, dataset="./absent")
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "set[train]:" in refusal(tmp_path, dataset="./set")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "exactly one of path, dataset, generator, pairs, found none"),
        ({"path": "a", "dataset": "b"}, "found path and dataset"),
        ({"path": "a", "split": "test"}, "go with dataset"),
        ({"path": "a", "revision": "1"}, "go with dataset"),
        ({"generator": "python-docstrings", "fields": "body"}, "fields goes with path and dataset"),
        ({"dataset": "a", "unit": "paragraph"}, "unit goes with path"),
        ({"path": "a", "fields": []}, "fields needs column names"),
        ({"path": "a", "fields": ["x", "x"]}, "all different"),
        ({"path": "a", "fields": ""}, "fields needs column names"),
        ({"path": "a", "weight": 0}, "greater than 0"),
        ({"path": "a", "weight": float("inf")}, "finite"),
        ({"path": "a", "field": "x"}, "Extra inputs"),
        ({"generator": "python"}, "python-docstrings"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SourceSpec(name="s", **wrong)
