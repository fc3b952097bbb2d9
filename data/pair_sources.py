"""The layouts that image–caption pairs come in: files, Parquet, tars, Hugging Face data sets.

Each gives all captions at once and the bytes of one image at a time, from any thread. Nothing is
fetched from an address that stands in the data, and no name leads out of the images' folder.
"""

from __future__ import annotations

import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from data.files import CorpusError, RowError, one_line, read_file
from data.images import ImageError
from data.pair_files import find_pairs

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEXTS = (".txt", ".caption")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
ANSWERS = ("gpt", "assistant")

_ROW_GROUPS_KEPT = 4
_FILES_KEPT = 16
"""Parquet files that stay open: a process may often have no more than 1,024 in all."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rows that were bad and are no pairs: how many, and where and what the first was."""

    rows: int = 0
    first: str = ""


class PairSource(Protocol):
    """Pairs in one layout, numbered from 0."""

    @property
    def captions(self) -> pa.ChunkedArray:
        """All captions."""

    @property
    def skipped(self) -> Skipped:
        """The rows that were passed over."""

    def name(self, row: int) -> str:
        """What errors call the image of a row."""

    def read(self, row: int) -> bytes:
        """The encoded image of a row. Raises `ImageError` or `OSError` where there is none."""


def open_pairs(
    *,
    path: str | None,
    dataset: str | None,
    subset: str | None,
    split: str,
    revision: str | None,
    images: str | None,
    image_field: str,
    caption_field: str,
    skip_bad: bool,
    base: Path,
) -> PairSource:
    """The pairs that a specification names, in whichever layout they are.

    Raises:
        CorpusError: there are none, or a row is bad and bad ones are not to be skipped.
    """
    if dataset is not None:
        return _DatasetPairs(
            _load_dataset(dataset, subset, split, revision, base), image_field, caption_field,
            skip_bad=skip_bad,
        )  # fmt: skip
    assert path is not None
    kind, files = find_pairs(path, base)
    if kind == "tar":
        return _TarPairs(files, caption_field, skip_bad=skip_bad)
    if kind == "parquet":
        return _ParquetPairs(files, image_field, caption_field, skip_bad=skip_bad)
    folder = None if images is None else base / images
    return _FilePairs(files, folder, image_field, caption_field, skip_bad=skip_bad)


def caption_of(row: object, field: str) -> str:
    """The caption in a row: a text, or the first answer of a conversation.

    Raises:
        RowError: there is none.
    """
    value = row
    for name in field.split("."):
        value = _parsed(value)
        if not isinstance(value, Mapping) or name not in value:
            found = ", ".join(map(repr, value)) if isinstance(value, Mapping) else repr(value)
            raise RowError(f"expected a caption in {field}, found {found[:200]}")
        value = value[name]
    value = _parsed(value) if field.endswith("conversations") else value
    if isinstance(value, list):
        answers = [t["value"] for t in value if isinstance(t, Mapping) and t.get("from") in ANSWERS]
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
    except ValueError as error:
        raise RowError(f"expected JSON, found: {one_line(error)}") from None


@dataclass(frozen=True, slots=True)
class _Good:
    """Captions of the good rows, and where each is; what was passed over."""

    captions: pa.ChunkedArray
    places: list[Any]
    skipped: Skipped


def _good(rows: Iterable[tuple[str, Any, str | RowError]], *, skip_bad: bool) -> _Good:
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
    return _Good(pa.chunked_array(chunks, pa.string()), places, skipped)


def _captioned(row: object, field: str) -> str | RowError:
    try:
        return caption_of(row, field)
    except RowError as error:
        return error


class _FilePairs:
    """Captions in JSON lines or CSV, which name image files."""

    def __init__(
        self, files: list[Path], folder: Path | None, image: str, caption: str, *, skip_bad: bool
    ) -> None:
        def rows() -> Iterator[tuple[str, Any, str | RowError]]:
            for file in files:
                for number, row in read_file(file, (), "line"):
                    where = f"{file}:{number}"
                    name = row.get(image) if isinstance(row, Mapping) else None
                    if isinstance(row, RowError):
                        yield where, None, row
                    elif not isinstance(name, str) or not name:
                        yield where, None, RowError(f"expected the name of an image in {image}")
                    else:
                        yield where, (folder or file.parent, name), _captioned(row, caption)

        good = _good(rows(), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = good.captions, good.places, good.skipped

    def name(self, row: int) -> str:
        return str(self._places[row][1])

    def read(self, row: int) -> bytes:
        folder, name = self._places[row]
        pure = PurePosixPath(name)
        if "://" in name or pure.is_absolute() or ".." in pure.parts:
            raise ImageError(f"{name} is no name within {folder}: nothing else is read")
        data: bytes = (folder / name).read_bytes()
        return data


class _TarPairs:
    """WebDataset tars: the files of one sample share their name up to the first dot."""

    def __init__(self, files: list[Path], caption: str, *, skip_bad: bool) -> None:
        good = _good((row for file in files for row in _samples(file, caption)), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = good.captions, good.places, good.skipped

    def name(self, row: int) -> str:
        file, name, _, _ = self._places[row]
        return f"{file.name}/{name}"

    def read(self, row: int) -> bytes:
        file, _, offset, size = self._places[row]
        with file.open("rb") as stream:
            stream.seek(offset)
            data: bytes = stream.read(size)
        return data


def _samples(file: Path, field: str) -> Iterator[tuple[str, Any, str | RowError]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and not path.name.startswith("."):
                    key, _, kind = path.name.partition(".")
                    samples.setdefault(str(path.parent / key), {})[f".{kind.lower()}"] = member
            for key, parts in samples.items():
                image = next((part for kind, part in parts.items() if kind in IMAGES), None)
                place = image and (file, image.name, image.offset_data, image.size)
                where = f"{file}:{key}"
                text = next((part for kind, part in parts.items() if kind in TEXTS), None)
                if image is None:
                    yield where, None, RowError("the sample has no image")
                elif text is not None:
                    yield where, place, _captioned({field: _text(tar, text)}, field)
                elif ".json" in parts:
                    yield where, place, _captioned(_text(tar, parts[".json"]), field)
                else:
                    yield where, None, RowError("the sample has no .txt or .json with a caption")
    except (tarfile.TarError, OSError) as error:
        raise CorpusError(f"{file}: expected a whole tar, found: {one_line(error)}") from None


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read().decode("utf-8", "replace")


class _ParquetPairs:
    """Parquet with captions and images. A row group is read whole; the last few are kept."""

    def __init__(self, files: list[Path], image: str, caption: str, *, skip_bad: bool) -> None:
        self._image = image
        self._paths = files
        self._kept: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._lock = Lock()

        def rows() -> Iterator[tuple[str, Any, str | RowError]]:
            for number, path in enumerate(files):
                for group, row, value in _parquet_captions(path, image, caption):
                    where = f"{path}: row group {group}, row {row}"
                    yield where, (number, group, row), value

        good = _good(rows(), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = good.captions, good.places, good.skipped

    def name(self, row: int) -> str:
        number, group, place = self._places[row]
        return f"{self._paths[number].name}: row group {group}, row {place}"

    def read(self, row: int) -> bytes:
        number, group, place = self._places[row]
        with self._lock:
            column = self._kept.get((number, group))
            if column is None:
                table = self._file(number).read_row_group(group, columns=[self._image])
                column = self._kept[number, group] = table.column(self._image)
                while len(self._kept) > _ROW_GROUPS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((number, group))
        return _bytes(column[place].as_py())

    def _file(self, number: int) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        if number not in self._open:
            self._open[number] = pq.ParquetFile(self._paths[number])
            while len(self._open) > _FILES_KEPT:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]


def _parquet_captions(
    path: Path, image: str, caption: str
) -> Iterator[tuple[int, int, str | RowError]]:
    """Row group, row and caption, one after the other."""
    import pyarrow.parquet as pq

    column = caption.split(".", maxsplit=1)[0]
    try:
        with pq.ParquetFile(path) as file:
            for name in (image, column):
                if name not in file.schema_arrow.names:
                    found = ", ".join(file.schema_arrow.names)
                    raise CorpusError(f"{path}: expected a column {name!r}, found {found}")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[column])
                for row, value in enumerate(table.to_pylist()):
                    yield group, row, _captioned(value, caption)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable: {one_line(error)}") from None


class _DatasetPairs:
    """A Hugging Face data set that can be asked for any of its rows."""

    def __init__(self, dataset: Any, image: str, caption: str, *, skip_bad: bool) -> None:
        from datasets import Image as ImageFeature

        columns = dataset.column_names
        for name in (image, caption.split(".", maxsplit=1)[0]):
            if name not in columns:
                raise CorpusError(
                    f"the data set: expected a column {name!r}, found {', '.join(columns)}"
                )
        if isinstance(dataset.features[image], ImageFeature):
            dataset = dataset.cast_column(image, ImageFeature(decode=False))
        texts = dataset.select_columns([caption.split(".", maxsplit=1)[0]])
        good = _good(
            ((f"row {n}", n, _captioned(row, caption)) for n, row in enumerate(texts)),
            skip_bad=skip_bad,
        )
        self.captions, self._places, self.skipped = good.captions, good.places, good.skipped
        self._images = dataset.select_columns([image])
        self._image = image

    def name(self, row: int) -> str:
        return f"row {self._places[row]}"

    def read(self, row: int) -> bytes:
        value = self._images[self._places[row]][self._image]
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path"):
            path = str(value["path"])
            if "://" in path:
                raise ImageError(f"{path} is an address: nothing is fetched")
            return Path(path).read_bytes()
        return _bytes(value)


def _bytes(value: object) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ImageError(f"expected the bytes of an image, found {type(value).__name__}")
    return value


def _load_dataset(
    name: str, subset: str | None, split: str, revision: str | None, base: Path
) -> Any:
    import datasets

    try:
        if not name.startswith((".", "/", "~")):
            return datasets.load_dataset(name, subset, split=split, revision=revision)
        folder = base / Path(name).expanduser()
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(folder))
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(str(folder), subset, split=split)
    except Exception as error:  # the library raises from several hierarchies
        raise CorpusError(
            f"data set {name}: {type(error).__name__}: {one_line(error)}; give a hub id or a "
            "local folder, and the split that it has"
        ) from error
