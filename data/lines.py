"""The texts of one file, in their order, each with its place: where every text is to get a row.

A corpus may pass over what it cannot use. Here a text that cannot be used stops the reading, or
rows would no longer belong to lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.files import CorpusError, RowError, find_files, form_of, missing, read_file

FIELD = "text"


def texts_of(path: Path, field: str = FIELD, name: str | None = None) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with its place, counted from 1: the line; in Parquet the row.

    Of a .txt file a text is a line; of JSON lines, CSV and Parquet it is what `field` holds.
    `name` stands in for the path in errors.

    Raises:
        CorpusError: there is no such file, its suffix or contents cannot be read, or a text is
            missing, empty or not UTF-8.
    """
    where = name or str(path)
    if not path.is_file():
        raise CorpusError(f"there is no file {where}")
    (file,) = find_files(str(path.absolute()), Path())
    plain = form_of(file) == ".txt"
    expected = 1
    for number, item in read_file(file, [field], "line"):
        if plain and number != expected:
            raise CorpusError(f"{where}:{expected}: expected a text on every line, found none")
        expected = number + 1
        try:
            yield number, _text(item, field)
        except RowError as error:
            raise CorpusError(f"{where}:{number}: {error}") from None


def _text(item: object, field: str) -> str:
    if isinstance(item, RowError):
        raise item
    if isinstance(item, dict):
        if field not in item:
            raise missing(field, list(item))
        item = item[field]
    if not isinstance(item, str):
        raise RowError(f"expected a text, found {type(item).__name__}")
    if not item.strip():
        raise RowError("expected a text, found an empty one")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise RowError("expected valid UTF-8, found other bytes") from None
    return item
