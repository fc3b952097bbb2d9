"""`jasper-cache search`: what the teachers hold to be near, side by side."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import default_device, phase, quiet_libraries
from cli.names import pick

if TYPE_CHECKING:
    from rich.text import Text

    from teacher_cache.reader import CacheReader
    from teacher_cache.search import Float16, Nearest, View
    from teacher_cache.search_index import SearchIndex

_ID = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"[0-9]{1,18}")  # an id may be all digits
_SHARED = "●"
_LINES = 3
_WIDTH = 120
_QUERY = 200


def search(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)],
    query: Annotated[
        str, typer.Argument(help="A row number, an id, or a text.", show_default=False)
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 10,
    teachers: Annotated[
        str | None, typer.Option(help="Only these of the cache's teachers, e.g. stella,nv-embed.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="QUERY is a text, though it looks like a number or id.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(help="Encode a new text with the prompt of this corpus source."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER", help="Where a teacher's model lies now; may be repeated."
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Keep the index in this folder, also where the cache is small "
            "(default: CACHE/search, where the cache is large).",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every row, however many.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where a new text is encoded: cpu, cuda … (default: a GPU).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Show the rows nearest to a row or a text: under each teacher, and together.

    A row, and a text that is in the cache, need no teacher. Any other text is encoded by the
    cache's teachers, as its rows were: their models must lie on this machine.

    Up to 4 GB of vectors are compared one and all. For more, an index is made once and kept beside
    the cache; what it proposes is compared exactly. Similarities are cosines; together, the mean of
    the teachers' cosines.

    Examples: `jasper-cache search cache/ 17`, `jasper-cache search cache/ "a sorted list" -k 5`,
    `jasper-cache search cache/ --text 1984`
    """
    from data.corpus import text_id
    from teacher_cache.format import CacheError
    from teacher_cache.index_build import ensure_index
    from teacher_cache.reader import CacheReader
    from teacher_cache.search import EXACT_BYTES, is_small, overlap, views
    from teacher_cache.search import search as search_cache
    from teacher_cache.search_index import INDEX_FOLDER

    reader = CacheReader(cache)
    names = None if teachers is None else pick(teachers, reader.teachers, str(cache))
    chosen = views(reader, names)
    folders = _folders(reader, model or [])
    row = None if text else _row(reader, query)
    _check_text(reader, query, source)
    if exact and index is not None:
        raise CacheError("--exact compares with every row and needs no --index; give one of them")
    small = is_small(reader, EXACT_BYTES)
    opened: SearchIndex | None = None
    if index is not None or not (exact or small):
        opened = ensure_index(reader, index or cache / INDEX_FOLDER, phase=phase, tell=_tell)
    is_id = not text and row is None and _ID.fullmatch(query) is not None
    if row is None:
        row = _row_of(reader, opened, bytes.fromhex(query) if is_id else text_id(query))
    if row is None and is_id:
        raise CacheError(f"{cache} has no row with the id {query}; if it is a text, add --text")
    if row is not None and source not in (None, *reader.sources([row])):
        query, row = reader.texts([row])[0], None  # the same text, but under another prompt
    if row is None:
        vector = _encoded(reader, query, chosen, source, folders, device)
    else:
        vector, query = reader.vectors([row])[0], reader.texts([row])[0]
    showing = phase("comparing", len(reader)) if exact and not small else _no_phase()
    with showing as advance:
        found = search_cache(reader, vector, chosen, k, own=row, index=opened, advance=advance)
    answer = _Answer(reader, query, row, found, overlap(found), opened)
    if as_json:
        typer.echo(json.dumps(answer.as_dict(), indent=1, ensure_ascii=False))
    else:
        answer.print()


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _no_phase() -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def _row(reader: CacheReader, query: str) -> int | None:
    """The row that a number means, None where the query is no number."""
    from teacher_cache.format import CacheError

    if not _NUMBER.fullmatch(query):
        return None
    if int(query) >= len(reader):
        raise CacheError(
            f"{reader.path} has the rows 0 to {len(reader) - 1}, asked for {query}; "
            "if it is a text, add --text"
        )
    return int(query)


def _row_of(reader: CacheReader, index: SearchIndex | None, id_: bytes) -> int | None:
    from teacher_cache.search import row_of

    return row_of(reader, id_) if index is None else index.row_of(id_)


def _check_text(reader: CacheReader, query: str, source: str | None) -> None:
    from teacher_cache.format import CacheError

    if not query.strip():
        raise CacheError("expected a row number, an id or a text, found an empty one")
    known = sorted(reader.manifest.counts)
    if source is not None and source not in known:
        raise CacheError(
            f"{reader.path} has no texts of the source {source!r}; it has {', '.join(known)}"
        )


def _folders(reader: CacheReader, given: Sequence[str]) -> dict[str, Path]:
    from teacher_cache.format import CacheError

    folders = {}
    for item in given:
        name, separator, folder = item.partition("=")
        if not separator or not folder or "," in name:
            raise CacheError(f"--model is NAME=FOLDER, found {item!r}")
        (teacher,) = pick(name, reader.teachers, str(reader.path))
        folders[teacher] = Path(folder).expanduser()
    return folders


def _encoded(
    reader: CacheReader,
    query: str,
    chosen: Sequence[View],
    source: str | None,
    folders: Mapping[str, Path],
    device: str | None,
) -> Float16:
    from teacher_cache.query import encode
    from teacher_cache.teachers import DEFAULT_PROMPT

    quiet_libraries()
    return encode(
        reader,
        query,
        chosen[-1].blocks,
        source=source or DEFAULT_PROMPT,
        folders=folders,
        device=device or default_device(),
        tell=_tell,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was found, for people and for programs."""

    reader: CacheReader
    query: str
    row: int | None
    found: Mapping[str, Nearest]
    shared: Mapping[tuple[str, str], float]
    index: SearchIndex | None

    def as_dict(self) -> dict[str, Any]:
        index = self.index and {
            name: self.index.record.to_json()[name] for name in ("lists", "probes", "recall")
        }
        return {
            "cache": str(self.reader.path),
            "identity": self.reader.identity,
            "query": {"text": self.query, "row": self.row},
            "index": index,
            "neighbours": {name: self._rows(each) for name, each in self.found.items()},
            "overlap": [
                {"teachers": list(pair), "share": share} for pair, share in self.shared.items()
            ],
        }

    def _rows(self, each: Nearest) -> list[dict[str, Any]]:
        rows = each.rows.tolist()
        columns = {
            "row": rows,
            "similarity": each.similarities.tolist(),
            "id": self.reader.ids(rows),
            "source": self.reader.sources(rows),
            "text": self.reader.texts(rows),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def print(self) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
        where = "a new text" if self.row is None else f"row {self.row:,}"
        typer.echo(f"{where}: {textwrap.shorten(_shown(self.query), _QUERY, placeholder='…')}")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", justify="right")
        for name in self.found:
            table.add_column(name, ratio=1)
        room = console.width // len(self.found) - 5
        common = self._common()
        columns = [
            [_cell(row, room, row["row"] in common) for row in self._rows(each)]
            for each in self.found.values()
        ]
        for rank, cells in enumerate(zip_longest(*columns), 1):
            table.add_row(str(rank), *cells)
        console.print(table)
        for (a, b), share in self.shared.items():
            count = len(self.found[a].rows)
            typer.echo(f"{a} and {b} share {round(share * count)} of {count} neighbours")
        if common:
            typer.echo(f"{_SHARED} a neighbour under every teacher")
        typer.echo(self._how())

    def _common(self) -> set[int]:
        """The rows that every single teacher has among its nearest, where there are several."""
        alone = [
            set(each.rows.tolist()) for each in self.found.values() if len(each.view.blocks) == 1
        ]
        return set.intersection(*alone) if len(alone) > 1 else set()

    def _how(self) -> str:
        from teacher_cache.search_index import RECALL_AT, recall_in_words

        if self.index is None:
            return f"compared with all {len(self.reader):,} rows"
        return f"recall@{RECALL_AT} of the index: {recall_in_words(self.index.record)}"


def _cell(row: Mapping[str, Any], room: int, is_common: bool) -> Text:
    from rich.text import Text

    text = Text(f"{row['similarity']:.3f}", style="bold")
    text.append(f" {_SHARED}" if is_common else "", style="green")
    text.append(f"  row {row['row']:,} {row['source']}\n", style="not bold cyan")
    lines = textwrap.wrap(_shown(row["text"]), room, max_lines=_LINES, placeholder="…")
    return text.append("\n".join([*lines, ""]), style="not bold")


def _shown(text: str) -> str:
    """A text on one line, with nothing in it that a terminal would obey."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
