"""Where texts come from: files, Hugging Face data sets and generators, as streams of groups.

One row of a source is one *group*: its texts belong together (a query, its positive, its
negative) and stay neighbours in the corpus.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.files import (
    SUPPORTED,
    CorpusError,
    RowError,
    ShapeError,
    Unit,
    find_files,
    missing,
    one_line,
    read_file,
)
from data.pairs_spec import PairsSpec

if TYPE_CHECKING:
    import datasets

Group: TypeAlias = list[str]
Position: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without usable text that can be passed over; `problem` begins with file:line."""

    problem: str


class SourceSpec(BaseModel):
    """One source of texts: exactly one of `path`, `dataset`, `generator` and `pairs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="what counts and errors call this source")
    path: str | None = Field(
        None,
        description="a file, a folder (with all below it, except hidden files and files of other "
        f"kinds) or a glob; several files are read in sorted order. Suffixes: {SUPPORTED}. JSON "
        "files hold one value a line; CSV and TSV begin with a header and quote like "
        "spreadsheets; blank lines are nothing",
    )
    dataset: str | None = Field(
        None,
        description="a data set of the Hugging Face hub, or a local folder if it begins with "
        "`.` or `/`; `datasets` streams it",
    )
    generator: Literal["python-docstrings"] | None = Field(
        None,
        description="texts made on the spot. `python-docstrings`: prose from the documentation "
        "in the installed Python packages, for runs that must not download",
    )
    pairs: PairsSpec | None = Field(
        None,
        description="the captions of image–caption pairs, as a recipe's [images] names them: for a "
        "cache of caption states (stage 4's `--captions`)",
    )
    fields: str | tuple[str, ...] = Field(
        "text",
        description="the column or columns that hold texts. The texts of one row stay neighbours, "
        "in this order; a list of texts counts as that many. Rows without column names (plain "
        "text, JSON lines that are a string or a list of strings) need it left out",
    )
    unit: Unit = Field(
        "line",
        description="what one text of a .txt file is: a line, or the lines between blank lines",
    )
    subset: str | None = Field(
        None, description="configuration of the data set, where it has several"
    )
    split: str = Field("train", min_length=1, description="split of the data set")
    revision: str | None = Field(
        None,
        description="commit or tag of the data set; without one the corpus changes when it does",
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="this source's share of the corpus, counted in texts kept, relative to the "
        "weights of the others",
    )
    cut: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of the texts that are cut into pieces: each piece is a text, next to "
        "the others, and the whole is none",
    )
    sentences: tuple[int, int] = Field(
        (1, 10), description="fewest and most sentences in a piece; every number is as likely"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kinds = ("path", "dataset", "generator", "pairs")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"source {self.name!r} needs exactly one of {', '.join(kinds)}, "
                f"found {' and '.join(given) or 'none'}"
            )
        if not all(self.columns) or len(set(self.columns)) != max(1, len(self.columns)):
            raise ValueError(f"source {self.name!r}: fields needs column names, all different")
        # Compared with the defaults, not with what was set: a spec that was dumped loads again.
        of_dataset = (self.subset, self.split, self.revision)
        if self.dataset is None and of_dataset != (None, "train", None):
            raise ValueError(f"source {self.name!r}: subset, split and revision go with dataset")
        if self.path is None and self.unit != "line":
            raise ValueError(f"source {self.name!r}: unit goes with path")
        if not 0 < self.sentences[0] <= self.sentences[1]:
            raise ValueError(f"source {self.name!r}: sentences needs a range such as [1, 10]")
        if self.fields != "text" and (self.path, self.dataset) == (None, None):
            raise ValueError(f"source {self.name!r}: fields goes with path and dataset")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """`fields` as a tuple."""
        return (self.fields,) if isinstance(self.fields, str) else self.fields


class Rows(Protocol):
    """One pass over the rows of a source."""

    def __iter__(self) -> Iterator[Group | BadRow]: ...

    def __next__(self) -> Group | BadRow: ...

    def position(self) -> Position:
        """Where the pass stands, behind the row given last, as plain JSON data."""


def open_source(spec: SourceSpec, base: Path) -> Callable[[Position | None], Rows]:
    """Find a source's files, and return the function that starts one pass over its groups.

    `base` is the folder that relative paths start from. A data set is only opened by a pass. A pass
    starts at the beginning or at a position that another one gave; files before it stay closed.
    Raises `CorpusError` if there is no file, or one of an unknown kind. The pass raises it where a
    file is damaged, where rows can no longer be told apart, where a file has given no text yet when
    a row lacks a column (then the name of the column is at fault rather than the row), and where it
    is to go on in files that have changed.
    """
    if spec.path is not None:
        return partial(_FileRows, spec, find_files(spec.path, base))
    if spec.dataset is not None:
        return partial(_DatasetRows, spec, spec.dataset, base)
    if spec.pairs is not None:
        return partial(_CaptionRows, spec, spec.pairs, base)
    return partial(_GeneratorRows, spec)


class _Judge:
    """Turns the rows of one place into groups; `found_text` is whether one was good already."""

    def __init__(self, spec: SourceSpec, found_text: bool = False) -> None:
        self.found_text = found_text
        self._spec = spec

    def group(self, place: str, number: int, item: object) -> Group | BadRow:
        try:
            group = _texts(item, self._spec)
        except RowError as error:
            if isinstance(error, ShapeError) and not self.found_text:
                raise CorpusError(f"{place}:{number}: {error}") from None
            return BadRow(f"{place}:{number}: {error}")
        self.found_text = True
        return group


class _FileRows(Iterator[Group | BadRow]):
    """Position: the number of the file, of the rows read in it, and a digest of all the files."""

    def __init__(self, spec: SourceSpec, files: Sequence[Path], at: Position | None) -> None:
        self._spec = spec
        self._files = files
        self._file: int = at["file"] if at else 0
        self._row: int = at["row"] if at else 0
        self._judge = _Judge(spec, at["found_text"] if at else False)
        # Names and sizes: what the folder was moved to does not matter.
        facts = "".join(f"{file.name}\0{file.stat().st_size}\0" for file in files)
        self._digest = xxhash.xxh3_64_hexdigest(facts.encode("utf-8", "surrogateescape"))
        if at is not None and at["digest"] != self._digest:
            raise CorpusError(
                f"source {spec.name!r}: expected the files that its texts were read from before, "
                f"found others or of other sizes in {spec.path}; put them back, or plan in a new "
                "folder"
            )
        self._groups = self._read()

    def __next__(self) -> Group | BadRow:
        return next(self._groups)

    def _read(self) -> Iterator[Group | BadRow]:
        while self._file < len(self._files):
            path = self._files[self._file]
            rows = read_file(path, self._spec.columns, self._spec.unit, self._row)
            for number, item in rows:
                self._row += 1
                yield self._judge.group(str(path), number, item)
            self._file, self._row, self._judge = self._file + 1, 0, _Judge(self._spec)

    def position(self) -> Position:
        return {
            "file": self._file,
            "row": self._row,
            "found_text": self._judge.found_text,
            "digest": self._digest,
        }


class _DatasetRows(Iterator[Group | BadRow]):
    """Position: the number of rows read, and where `datasets` says that its stream stands."""

    def __init__(self, spec: SourceSpec, name: str, base: Path, at: Position | None) -> None:
        if name.startswith((".", "/")):
            name = str(base / name)
            if not Path(name).exists():
                raise CorpusError(f"{name}: expected the folder of a data set, found nothing")
        self._spec = spec
        self._name = name
        self._place = f"{name}[{spec.split}]"
        self._row: int = at["row"] if at else 0
        self._stream: Position | None = at["stream"] if at else None
        self._rows: datasets.IterableDataset | None = None
        self._judge = _Judge(spec, at["found_text"] if at else False)
        self._groups = self._read()

    def __next__(self) -> Group | BadRow:
        return next(self._groups)

    def _read(self) -> Iterator[Group | BadRow]:
        for item in self._items():
            self._row += 1
            yield self._judge.group(self._place, self._row, item)

    def _items(self) -> Iterator[object]:
        import datasets

        spec = self._spec
        try:
            self._rows = datasets.load_dataset(
                self._name, spec.subset, split=spec.split, revision=spec.revision, streaming=True
            )
            if self._stream is not None:
                self._rows.load_state_dict(self._stream)
            yield from self._rows
        except Exception as error:  # `datasets` raises whatever its builders and the network do
            raise CorpusError(
                f"{self._place}:{self._row + 1}: expected a data set that can be read, found: "
                f"{one_line(error)}; check its name (a local folder begins with . or /), subset, "
                "split and revision, and the network"
            ) from error

    def position(self) -> Position:
        stream = self._stream if self._rows is None else self._rows.state_dict()
        return {"row": self._row, "found_text": self._judge.found_text, "stream": stream}


class _GeneratorRows(Iterator[Group | BadRow]):
    """Position: the number of texts made; they are made again to get there."""

    def __init__(self, spec: SourceSpec, at: Position | None) -> None:
        self._place = str(spec.generator)
        self._row: int = at["row"] if at else 0
        self._judge = _Judge(spec)
        self._groups = self._read()

    def __next__(self) -> Group | BadRow:
        return next(self._groups)

    def _read(self) -> Iterator[Group | BadRow]:
        from data.demo import python_docstrings

        for text in islice(python_docstrings(), self._row, None):
            self._row += 1
            yield self._judge.group(self._place, self._row, text)

    def position(self) -> Position:
        return {"row": self._row}


class _CaptionRows(Iterator[Group | BadRow]):
    """Position: the number of captions read, and what tells these pairs from any others.

    `passed_over` are rows without a pair, of which nothing is given.
    """

    def __init__(self, spec: SourceSpec, pairs: PairsSpec, base: Path, at: Position | None) -> None:
        from data.pairs import Pairs

        found = Pairs(pairs, base)
        self._identity = found.identity
        if at is not None and at["identity"] != self._identity:
            raise CorpusError(
                f"source {spec.name!r}: expected the pairs whose captions were read before, found "
                "others; put them back, or plan in a new folder"
            )
        self._captions = found.source.captions
        self.passed_over = found.skipped.rows
        self._place = str(pairs.path or pairs.dataset or pairs.generator)
        self._row: int = at["row"] if at else 0
        self._judge = _Judge(spec)

    def __next__(self) -> Group | BadRow:
        if self._row == len(self._captions):
            raise StopIteration
        self._row += 1
        caption = self._captions[self._row - 1].as_py()
        return self._judge.group(self._place, self._row, caption)

    def position(self) -> Position:
        return {"row": self._row, "identity": self._identity}


def _texts(item: object, spec: SourceSpec) -> Group:
    """Return the texts of a row in the order of `fields`; raises `RowError`."""
    group = []
    for place, cell in _cells(item, spec):
        for text in cell if isinstance(cell, list) else [cell]:
            if not isinstance(text, str):
                raise RowError(f"expected a text in {place}, found {_kind(text)}")
            if not text or text.isspace():
                raise RowError(f"expected a text in {place}, found an empty one")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RowError(
                    f"expected valid UTF-8 in {place}, found {_stray(text[error.start])} at "
                    f"character {error.start + 1}"
                ) from None
            group.append(text)
    if not group:
        raise RowError("expected at least one text, found empty lists")
    return group


def _cells(item: object, spec: SourceSpec) -> Iterator[tuple[str, object]]:
    if isinstance(item, RowError):
        raise item
    if isinstance(item, dict):
        for column in spec.columns:
            if column not in item:
                raise missing(column, list(item))
            yield f"column {column!r}", item[column]
    elif isinstance(item, str | list):
        if spec.fields != "text":
            raise ShapeError(
                f"expected the columns {', '.join(map(repr, spec.columns))}, found a row without "
                "column names; leave fields out to take all its texts"
            )
        yield "the row", item
    else:
        raise RowError(f"expected a row with columns, found {_kind(item)}")


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _stray(character: str) -> str:
    """Name what is no character: files are decoded so that a stray byte b is U+DC00 + b."""
    code = ord(character)
    return f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"a lone U+{code:04X}"
