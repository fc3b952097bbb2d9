"""Where texts come from: files, Hugging Face data sets and generators, as streams of groups.

One row of a source is one *group*: its texts belong together (a query, its positive, its
negative) and stay neighbours in the corpus.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.files import (
    SUPPORTED,
    CorpusError,
    Item,
    RowError,
    ShapeError,
    Unit,
    find_files,
    missing,
    one_line,
    read_file,
)

Group: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without usable text that can be passed over; `problem` begins with file:line."""

    problem: str


class SourceSpec(BaseModel):
    """One source of texts: exactly one of `path`, `dataset` and `generator`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="What counts and errors call this source.")
    path: str | None = Field(
        None,
        description="A file, a folder (with all below it, except hidden files and files of other "
        f"kinds) or a glob; several files are read in sorted order. Suffixes: {SUPPORTED}. JSON "
        "files hold one value a line; CSV and TSV begin with a header and quote like "
        "spreadsheets; blank lines are nothing.",
    )
    dataset: str | None = Field(
        None,
        description="A data set of the Hugging Face hub, or a local folder if it begins with "
        "`.` or `/`; `datasets` streams it.",
    )
    generator: Literal["python-docstrings"] | None = Field(
        None,
        description="Texts made on the spot. `python-docstrings`: prose from the documentation "
        "in the installed Python packages, for runs that must not download.",
    )
    fields: str | tuple[str, ...] = Field(
        "text",
        description="The column or columns that hold texts. The texts of one row stay neighbours, "
        "in this order; a list of texts counts as that many. Rows without column names (plain "
        "text, JSON lines that are a string or a list of strings) need it left out.",
    )
    unit: Unit = Field(
        "line",
        description="What one text of a .txt file is: a line, or the lines between blank lines.",
    )
    subset: str | None = Field(
        None, description="Configuration of the data set, where it has several."
    )
    split: str = Field("train", min_length=1, description="Split of the data set.")
    revision: str | None = Field(
        None,
        description="Commit or tag of the data set; without one the corpus changes when it does.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="This source's share of the corpus, counted in texts kept, relative to the "
        "weights of the others.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kinds = ("path", "dataset", "generator")
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
        if self.generator is not None and self.fields != "text":
            raise ValueError(f"source {self.name!r}: a generator has no fields")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """`fields` as a tuple."""
        return (self.fields,) if isinstance(self.fields, str) else self.fields


def open_source(spec: SourceSpec, base: Path) -> Callable[[], Iterator[Group | BadRow]]:
    """Find a source's files, and return the function that starts one pass over its groups.

    `base` is the folder that relative paths start from. A data set is only opened by a pass.
    Raises `CorpusError` if there is no file, or one of an unknown kind. The pass raises it where
    a file is damaged, where rows can no longer be told apart, and where a file has given no text
    yet when a row lacks a column: then the name of the column is at fault rather than the row.
    """
    if spec.path is not None:
        return partial(_from_files, spec, find_files(spec.path, base))
    if spec.dataset is not None:
        return partial(_from_dataset, spec, spec.dataset, base)
    return partial(_from_generator, spec)


def _from_files(spec: SourceSpec, files: Sequence[Path]) -> Iterator[Group | BadRow]:
    for path in files:
        yield from _groups(str(path), read_file(path, spec.columns, spec.unit), spec)


def _from_dataset(spec: SourceSpec, name: str, base: Path) -> Iterator[Group | BadRow]:
    if name.startswith((".", "/")):
        name = str(base / name)
        if not Path(name).exists():
            raise CorpusError(f"{name}: expected the folder of a data set, found nothing")
    place = f"{name}[{spec.split}]"
    yield from _groups(place, _dataset_rows(name, place, spec), spec)


def _dataset_rows(name: str, place: str, spec: SourceSpec) -> Iterator[Item]:
    import datasets

    number = 0
    try:
        rows = datasets.load_dataset(
            name, spec.subset, split=spec.split, revision=spec.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield number, row
    except Exception as error:  # `datasets` raises whatever its builders and the network do
        raise CorpusError(
            f"{place}:{number + 1}: expected a data set that can be read, found: "
            f"{one_line(error)}; check its name (a local folder begins with . or /), subset, "
            "split and revision, and the network"
        ) from error


def _from_generator(spec: SourceSpec) -> Iterator[Group | BadRow]:
    from data.demo import python_docstrings

    yield from _groups(str(spec.generator), enumerate(python_docstrings(), 1), spec)


def _groups(place: str, items: Iterable[Item], spec: SourceSpec) -> Iterator[Group | BadRow]:
    found_text = False
    for number, item in items:
        try:
            group = _texts(item, spec)
        except RowError as error:
            if isinstance(error, ShapeError) and not found_text:
                raise CorpusError(f"{place}:{number}: {error}") from None
            yield BadRow(f"{place}:{number}: {error}")
            continue
        found_text = True
        yield group


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
