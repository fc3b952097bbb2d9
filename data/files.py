"""Reading texts out of local files, row by row, and saying where a file is at fault.

Reading holds one row, or one small batch of rows, at a time, whatever the size of the file.
"""

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
PACKED = (".gz", ".zst")
SUPPORTED = f"{' '.join(SUFFIXES)}, each also with {' or '.join(PACKED)}, and .parquet"

PARQUET_ROWS = 1024
PARQUET_READ_BYTES = 1 << 20
# csv's own limit of 131,072 characters is shorter than documents are. With none at all, a quote
# that is never closed would pull the rest of the file into memory.
CSV_CELL_CHARACTERS = 1 << 24

# What one text of a .txt file is.
Unit: TypeAlias = Literal["line", "paragraph"]

# A place in a file, counted from 1 (a line; in Parquet and data sets a row), and what is there:
# a dict of columns, a text or a list of texts without column names, or a RowError: why neither.
Item: TypeAlias = tuple[int, object]


class CorpusError(Exception):
    """An expected failure, in one line: what was expected, what was found, where, what to do."""


class RowError(Exception):
    """A row is unusable, the rows after it are not; the caller knows and adds the place."""


class ShapeError(RowError):
    """A row does not have the columns that were asked for."""


def find_files(pattern: str, base: Path) -> list[Path]:
    """Return the files that a file name, a folder or a glob below `base` stands for, sorted.

    Raises `CorpusError` if there is none, or if one that was asked for by name or by glob has a
    suffix that cannot be read; in a folder, other files and hidden ones are passed over.
    """
    files = named(pattern, base)
    if files is None:
        folder = base / pattern
        files = [
            file
            for file in folder.rglob("*")
            if form_of(file)
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        ]
    if not files:
        raise CorpusError(
            f"{base / pattern}: expected a file, a folder with files or a glob that matches some, "
            f"found none; supported suffixes: {SUPPORTED}"
        )
    for file in files:
        if not form_of(file):
            raise CorpusError(
                f"{file}: expected a file that can be read by its suffix, found "
                f"{file.suffix or 'no suffix'}; supported suffixes: {SUPPORTED}"
            )
    return sorted(files)


def named(pattern: str, base: Path) -> list[Path] | None:
    """The files that a name or a glob (`**` for all folders below) stands for; None for a folder,
    of which each reader takes what it can read.

    Raises `CorpusError` if one is a link that leads nowhere.
    """
    path = base / pattern
    if path.is_dir():
        return None
    if path.exists():
        return [path]
    # Path.glob refuses absolute patterns.
    names = glob.glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207
    files = [base / name for name in names if not (base / name).is_dir()]
    for file in files:
        if not file.exists():
            raise CorpusError(
                f"{file}: expected a file, found a link that leads nowhere; remove it, or put back "
                "what it names"
            )
    return files


def read_file(path: Path, columns: Sequence[str], unit: Unit, skip: int = 0) -> Iterator[Item]:
    """Iterate over the rows of a file, but for the first `skip`, which are passed over cheaply.

    Raises `CorpusError` where the file is damaged or its rows can no longer be told apart, and
    if it is Parquet without one of `columns`. Other files give all their columns.
    """
    if form_of(path) == ".parquet":
        return _parquet_rows(path, columns, skip)
    return _text_rows(path, unit, skip)


def missing(column: str, found: Sequence[object]) -> ShapeError:
    """Say which column is missing, and which ones there are."""
    names = ", ".join(repr(name) for name in found[:20]) or "none"
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return ShapeError(
        f"expected a column {column!r}, found the columns {names}{more}; name one of these"
    )


def one_line(error: Exception) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def form_of(path: Path) -> str:
    """Return the suffix that says how to read a file, without .gz and .zst; '' if none does."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return ".parquet"
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def rows_of(batch: "pa.RecordBatch") -> list[object]:
    """Return the rows of a batch; for one that is not valid UTF-8, a `RowError`."""
    try:
        return cast(list[object], batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [RowError(f"expected valid UTF-8, found: {one_line(error)}")]
    return [row for i in range(batch.num_rows) for row in rows_of(batch.slice(i, 1))]


class _Lines:
    """The lines of a text file; `number` is the one handed out last, counted from 1."""

    def __init__(self, file: Iterable[str]) -> None:
        self.number = 0
        self._file = iter(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        return line


def _text_rows(path: Path, unit: Unit, skip: int) -> Iterator[Item]:
    suffix = form_of(path)
    lines = _Lines(())
    try:
        with ExitStack() as stack:
            # Bytes that are not UTF-8 are carried along to the one check of all texts, so that
            # they cost a row and not the rest of the file.
            file = io.TextIOWrapper(
                _unpacked(path, stack), "utf-8-sig", errors="surrogateescape", newline="\n"
            )
            lines = _Lines(stack.enter_context(file))
            if suffix in (".csv", ".tsv"):
                rows = _csv_rows(path, lines, "," if suffix == ".csv" else "\t")
            elif suffix == ".txt":
                rows = _paragraphs(lines) if unit == "paragraph" else _plain_lines(lines)
            else:
                rows, skip = _json_rows(lines, skip), 0
            yield from islice(rows, skip, None)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, lines.number + 1, error) from error


def _unpacked(path: Path, stack: ExitStack) -> io.BufferedReader | gzip.GzipFile:
    """Open a file for reading, decompressing it on the way."""
    packing = path.suffix.lower()
    if packing == ".gz":
        return stack.enter_context(gzip.open(path))
    if packing == ".zst":
        import pyarrow as pa

        # Not the zstandard package, whose stream reader takes a file cut short for a whole one.
        arrow = stack.enter_context(pa.input_stream(str(path), compression="zstd"))
        return stack.enter_context(io.BufferedReader(arrow))
    return stack.enter_context(path.open("rb"))


def _json_rows(lines: _Lines, skip: int) -> Iterator[Item]:
    for line in lines:
        if line.isspace():
            continue
        if skip:
            skip -= 1  # not parsed: that would be most of the work
            continue
        item: object
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            item = RowError(
                f"expected one JSON value a line, found: {error.msg} at character {error.colno}"
            )
        except (ValueError, RecursionError) as error:
            item = RowError(f"expected one JSON value a line, found: {one_line(error)}")
        yield lines.number, item


def _csv_rows(path: Path, lines: _Lines, delimiter: str) -> Iterator[Item]:
    csv.field_size_limit(CSV_CELL_CHARACTERS)
    header = None
    start = 1
    try:
        for cells in csv.reader(lines, delimiter=delimiter, strict=True):
            if cells and header is None:
                header = cells
            elif cells and header is not None:
                if len(cells) == len(header):
                    yield start, dict(zip(header, cells, strict=True))
                else:
                    yield start, RowError(f"expected {len(header)} cells, found {len(cells)}")
            start = lines.number + 1
    except csv.Error as error:
        raise CorpusError(
            f"{path}:{start}: expected a row of CSV, found: {error}; mend its quotes (behind a "
            "broken one, rows cannot be told apart)"
        ) from error


def _plain_lines(lines: _Lines) -> Iterator[Item]:
    for line in lines:
        if not line.isspace():
            yield lines.number, line.rstrip("\r\n")


def _paragraphs(lines: _Lines) -> Iterator[Item]:
    paragraph: list[str] = []
    for line in lines:
        if not line.isspace():
            paragraph.append(line.rstrip("\r\n"))
        elif paragraph:
            yield lines.number - len(paragraph), "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield lines.number - len(paragraph) + 1, "\n".join(paragraph)


def _parquet_rows(path: Path, columns: Sequence[str], skip: int) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Through a buffer: without one, a row group's whole column is held, often gigabytes.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_READ_BYTES) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise CorpusError(f"{path}:1: {missing(column, file.schema_arrow.names)}")
            groups = range(file.num_row_groups)
            for group in groups:
                rows = file.metadata.row_group(group).num_rows
                if number + rows > skip:
                    groups = groups[group:]
                    break
                number += rows
            else:
                return
            for batch in file.iter_batches(PARQUET_ROWS, groups, columns=list(columns)):
                passed = min(max(0, skip - number), batch.num_rows)
                number += passed
                for row in rows_of(batch.slice(passed)):
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, number + 1, error) from error


def _damaged(path: Path, number: int, error: Exception) -> CorpusError:
    return CorpusError(
        f"{path}:{number}: expected a whole file that can be read, found: {one_line(error)}; "
        "fetch or write it again"
    )
