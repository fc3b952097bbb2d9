"""The rows of a task's files, each with its place, so that a bad one is named by file and line.

How files are read, compressed ones too, is `data.files`; here is what a task may hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import CorpusError, RowError, find_files, read_file
from student.evaluation.task_spec import TaskError

Row = Mapping[str, Any]
"""A row's cells by column, as the file has them."""


def rows(path: Path, columns: Sequence[str], mend: str = "") -> Iterator[tuple[str, Row]]:
    """Each row of a CSV, TSV or JSONL file that has these columns, and its `file:line`.

    `mend` is said where a column is missing: how to name another one.

    Raises:
        TaskError: the file cannot be read, has no rows, or a row lacks a column.
    """
    found = False
    if not path.exists():
        raise TaskError(f"{path}: expected a file, found none")
    if path.is_dir() or path.suffix == ".parquet":
        raise TaskError(f"{path}: expected a CSV, TSV or JSONL file")
    try:
        (path,) = find_files(path.name, path.parent)
        for line, item in read_file(path, columns, "line"):
            place = f"{path}:{line}"
            if isinstance(item, RowError):
                raise TaskError(f"{place}: {item}")
            if not isinstance(item, dict):
                raise TaskError(f"{place}: expected a row with columns, found {item!r:.80}")
            lacking = [column for column in columns if column not in item]
            if lacking:
                raise TaskError(
                    f"{place}: expected a column {lacking[0]!r}, found "
                    f"{', '.join(map(repr, item)) or 'none'}{mend}"
                )
            found = True
            yield place, item
    except CorpusError as error:
        raise TaskError(str(error)) from None
    if not found:
        raise TaskError(f"{path}: expected rows, found none")


def text(row: Row, column: str, place: str) -> str:
    """A text that is not empty.

    Raises:
        TaskError: it is something else.
    """
    value = plain(row, column, place)
    if not value or value.isspace():
        raise TaskError(f"{place}: expected a text in {column!r}, found an empty one")
    return value


def plain(row: Row, column: str, place: str) -> str:
    """A text, which may be empty or missing: then it is ''.

    Raises:
        TaskError: it is something else, or not valid UTF-8.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TaskError(f"{place}: expected a text in {column!r}, found {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TaskError(f"{place}: expected valid UTF-8 in {column!r}") from None
    return value


def name(row: Row, column: str, place: str) -> str:
    """An id or a label: a text that is not empty, or a whole number.

    Raises:
        TaskError: it is something else.
    """
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(row, column, place)


def number(row: Row, column: str, place: str) -> float:
    """A finite number.

    Raises:
        TaskError: it is something else.
    """
    value = row[column]
    try:
        found = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):  # JSON's whole numbers have no end
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise TaskError(f"{place}: expected a number in {column!r}, found {value!r:.80}")
    return found


def beside(folder: Path, stem: str) -> Path:
    """The one file of a folder with this name before its suffix: `test` finds `test.csv`.

    Raises:
        TaskError: there is none, or there are several.
    """
    if not stem or Path(stem).is_absolute():
        raise TaskError(f"{folder}: expected the name of a split, found {stem!r}")
    found = sorted(path for path in folder.glob(f"{stem}.*") if path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise TaskError(f"{folder}: expected one file {stem}.csv, .tsv or .jsonl, found {names}")
    return found[0]


def columns_of(
    given: Mapping[str, str], defaults: Mapping[str, str], task: str
) -> Mapping[str, str]:
    """The names of a task's columns: the usual ones, and what its `columns` say instead.

    Raises:
        TaskError: `columns` names what the task does not have.
    """
    unknown = [key for key in given if key not in defaults]
    if unknown:
        raise TaskError(
            f"task {task!r}: columns has {unknown[0]!r}, expected some of "
            f"{', '.join(defaults) or 'none'}"
        )
    return {**defaults, **given}
