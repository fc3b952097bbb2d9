"""The caption in a row, and which rows are pairs: what all layouts of pairs have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.files import CorpusError, RowError, one_line

ANSWERS = ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rows that were bad and are no pairs: how many, and where and what the first was."""

    rows: int = 0
    first: str = ""


@dataclass(frozen=True, slots=True)
class Good:
    """Captions of the good rows, and where each is; what was passed over."""

    captions: pa.ChunkedArray
    places: list[Any]
    skipped: Skipped


def good(rows: Iterable[tuple[str, Any, str | RowError]], *, skip_bad: bool) -> Good:
    """Sort rows (where a row is, its place, its caption or what is wrong) into good and bad."""
    chunks: list[pa.Array] = []
    texts: list[str] = []
    places: list[Any] = []
    skipped = Skipped()
    for where, place, caption in rows:
        if isinstance(caption, RowError):
            if not skip_bad:
                raise CorpusError(f'{where}: {caption}; mend it, or give bad_rows = "skip"')
            skipped = Skipped(skipped.rows + 1, skipped.first or f"{where}: {caption}")
            continue
        texts.append(caption)
        places.append(place)
        if len(texts) == 1 << 16:
            chunks.append(pa.array(texts, pa.string()))
            texts = []
    chunks.append(pa.array(texts, pa.string()))
    if not places:
        why = f"; {skipped.rows} rows are bad, the first is {skipped.first}" if skipped.rows else ""
        raise CorpusError(f"expected pairs of an image and a caption, found none{why}")
    return Good(pa.chunked_array(chunks, pa.string()), places, skipped)


def captioned(row: object, field: str) -> str | RowError:
    """The caption in a row, or what is wrong with the row."""
    try:
        return caption_of(row, field)
    except RowError as error:
        return error


def caption_of(row: object, field: str) -> str:
    """The caption in a row: a text, or the first answer of a conversation.

    Raises:
        RowError: there is none.
    """
    if isinstance(row, RowError):
        raise row
    value = row
    for name in field.split("."):
        value = _parsed(value)
        if not isinstance(value, Mapping) or name not in value:
            found = ", ".join(map(repr, value)) if isinstance(value, Mapping) else repr(value)
            raise RowError(f"expected a caption in {field}, found {found[:200]}")
        value = value[name]
    value = _parsed(value) if field.endswith("conversations") else value
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping)]
        answers = [turn.get("value") for turn in turns if turn.get("from") in ANSWERS]
        value = answers[0] if answers else None
    if not isinstance(value, str) or not value.strip():
        found = "an empty one" if isinstance(value, str) else repr(value)
        raise RowError(f"expected a caption in {field}, found {found}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"expected a caption that UTF-8 can hold in {field}") from None
    return value


def _parsed(value: object) -> object:
    """JSON in a column of text or bytes, as its value."""
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"expected JSON, found: {one_line(error)}") from None
