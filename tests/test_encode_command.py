"""`jasper-student encode` as people run it: files of texts in, files of vectors out."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from commands import Command, command_of

from cli.student import app
from data.files import CorpusError
from data.lines import texts_of
from student.embedder import load
from student.model import create
from student.spec import StudentError, StudentSpec
from student.vector_files import write_vectors

TEXTS = ["the river in the morning", "a", "seven clocks " * 30, "Music, again!", "naïve: ß 房子"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(app, "jasper-student", monkeypatch, capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_encoder: Path) -> Path:
    """A run with a third stage, in which FC1 and FC2 were trained."""
    run = tmp_path_factory.mktemp("run")
    spec = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24)
    create(spec, small_encoder, target_width=10, seed=0).save(run / "stage-3" / "model")
    (run / "stage-3" / "run.json").write_text(json.dumps({"trained_heads": ["fc1", "fc2"]}))
    return run


def write_lines(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def write_jsonl(path: Path, field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 3, field: text}) + "\n" for text in TEXTS))
    return path


def test_npy_holds_a_row_for_every_line(command: Command, run: Path, tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "texts.txt"), tmp_path / "made" / "vectors.npy"
    ran = command("encode", run, source, "--out", out)
    assert ran.code == 0, ran.err
    assert "5 x 10 float32, " in ran.out
    assert "5/5 (100%)" in ran.err
    found = np.load(out, mmap_mode="r")
    assert np.abs(found - load(run).encode(TEXTS)).max() < 1e-6
    assert [path.name for path in out.parent.iterdir()] == ["vectors.npy"]


def test_parquet_holds_line_text_and_vector(command: Command, run: Path, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "texts.jsonl", "body"), tmp_path / "vectors.parquet"
    ran = command("encode", run, source, "--field", "body", "--out", out, "--head", "6",
                  "--raw", "--dtype", "float16", "--with-text", "--batch-size", "2")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "fc2, raw" in ran.out
    table = pq.read_table(out)
    assert table.column_names == ["place", "text", "vector"]
    assert table["place"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["text"].to_pylist() == TEXTS
    vector = table.schema.field("vector").type
    assert (vector.list_size, vector.value_type) == (6, pa.float16())
    expected = load(run).encode(TEXTS, head="fc2", normalize=False)
    found = np.stack(table["vector"].to_numpy())
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("field", [None, "text"])
def test_standard_input_is_lines_or_json_lines(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str | None
) -> None:
    write = write_lines if field is None else write_jsonl
    data = write(tmp_path / "texts").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
    named = () if field is None else ("--field", field)
    ran = command("encode", run, "-", "--out", tmp_path / "vectors.npy", *named)
    assert ran.code == 0, ran.err
    assert np.abs(np.load(tmp_path / "vectors.npy") - load(run).encode(TEXTS)).max() < 1e-6


def test_packed_files_and_tables_are_read_too(command: Command, run: Path, tmp_path: Path) -> None:
    packed, table = tmp_path / "texts.txt.gz", tmp_path / "texts.parquet"
    packed.write_bytes(gzip.compress(write_lines(tmp_path / "texts.txt").read_bytes()))
    pq.write_table(pa.table({"text": TEXTS}), table)
    for source in (packed, table):
        out = tmp_path / f"{source.name}.npy"
        assert command("encode", run / "stage-3", source, "--out", out).code == 0
        assert np.abs(np.load(out) - load(run).encode(TEXTS)).max() < 1e-6


def test_blank_lines_of_json_and_csv_are_no_texts_and_places_tell_the_lines(
    tmp_path: Path,
) -> None:
    lines, table = tmp_path / "texts.jsonl", tmp_path / "texts.csv"
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    table.write_text("text\none\n\ntwo\n")
    assert list(texts_of(lines)) == [(1, "one"), (3, "two")]
    assert list(texts_of(table)) == [(2, "one"), (4, "two")]


def test_a_suffix_is_what_the_name_ends_in_whatever_its_case(tmp_path: Path) -> None:
    plain, lines = tmp_path / "A.TXT", tmp_path / "b.txt.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    with pytest.raises(CorpusError, match=r"A\.TXT:2: expected a text on every line, found none"):
        list(texts_of(plain))
    assert list(texts_of(lines)) == [(1, "one"), (3, "two")]


def test_memory_holds_one_chunk(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student.vector_files.CHUNK", 4)
    seen = 0

    def rows() -> object:
        nonlocal seen
        for seen in range(1, 11):
            yield seen, f"text {seen}"

    def embed(texts: list[str]) -> np.ndarray:
        asked.append((seen, len(texts)))
        return np.array([[int(text.split()[1])] * 3 for text in texts], np.float32)

    for suffix in ("npy", "parquet"):
        asked: list[tuple[int, int]] = []
        write_vectors(tmp_path / f"v.{suffix}", rows(), embed, count=10, width=3)  # type: ignore[arg-type]
        assert asked == [(4, 4), (8, 4), (10, 2)]
    expected = np.repeat(np.arange(1, 11.0), 3).reshape(10, 3)
    assert np.array_equal(np.load(tmp_path / "v.npy"), expected)
    table = pq.read_table(tmp_path / "v.parquet")
    assert np.array_equal(np.stack(table["vector"].to_numpy()), expected)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path / f"v.{suffix}", [(1, "a")], embed, count=1, width=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e5, "float16")])
def test_a_value_that_is_no_number_names_its_text(tmp_path: Path, value: float, dtype: str) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[1, 2], [3, value]], np.float32)

    with pytest.raises(StudentError, match=f"vector of text 9 has a value .* in {dtype}"):
        write_vectors(
            tmp_path / "v.npy", [(7, "a"), (9, "b")], embed, count=2, width=2, dtype=dtype
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no text"),
        ("gap.txt", b"one\n\nthree\n", "gap.txt:2: expected a text on every line, found none"),
        ("other.jsonl", b'{"text": "a"}\n{"body": "b"}\n',
         "other.jsonl:2: expected a column 'text', found the columns 'body'"),
        ("number.jsonl", b'{"text": 3}\n', "number.jsonl:1: expected a text, found int"),
        ("blank.jsonl", b'{"text": " "}\n', "blank.jsonl:1: expected a text, found an empty one"),
        ("torn.jsonl", b'{"text": "a"}\n{"te\n', "torn.jsonl:2: expected one JSON value a line"),
        ("latin.txt", b"caf\xe9\n", "latin.txt:1: expected valid UTF-8"),
        ("texts.doc", b"a\n", "expected a file that can be read by its suffix, found .doc"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_used_are_one_line_and_exit_2(
    command: Command, run: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    ran = command("encode", run, tmp_path / name, "--out", tmp_path / "vectors.npy")
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_path_that_cannot_be_written_is_told_without_a_traceback(
    command: Command, run: Path, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "texts.txt")
    ran = command("encode", run, source, "--out", source / "vectors.npy")
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == f"error: {source}: File exists"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def write() -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"some")

    ran = command_of(app, "write", monkeypatch, capsys)()
    assert (ran.code, ran.err) == (2, "error: No space left on device\n")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--out": "vectors.csv"}, "vectors.csv: vectors are written as .npy or .parquet"),
        ({"--out": "texts.npy"}, "texts.npy exists; give another name"),
        ({"--head": "fc3"}, "the run has not trained 'fc3'; it can give fc1, fc2, pooled"),
        ({"--head": "1024"}, "no trained head is 1024 wide: fc1 (10 wide), fc2 (6 wide)"),
        ({"--dtype": "int8"}, "--dtype is float32 or float16, found 'int8'"),
        ({"texts": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"run": "nowhere"}, "there is no nowhere: expected a run"),
        ({"--with-text": None}, "--with-text goes with a .parquet file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str | None], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_lines(Path("texts.txt"))
    Path("texts.npy").write_bytes(b"mine")
    given = {"run": str(run), "texts": "texts.txt", "--out": "vectors.npy", **changed}
    arguments = [given.pop("run"), given.pop("texts")]
    for name, value in given.items():
        arguments += [name] if value is None else [name, value]
    ran = command("encode", *arguments)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert message in ran.err
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "texts.npy"}
    assert Path("texts.npy").read_bytes() == b"mine"
