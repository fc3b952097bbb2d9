"""The layouts that image–caption pairs come in: files, Parquet, tars, Hugging Face data sets.

Each gives all captions at once and the bytes of one image at a time, from any thread. Nothing is
fetched from an address that stands in the data, and no name leads out of the folder of the images:
that of a data set is its own, or where `datasets` keeps what it fetched.
"""

from __future__ import annotations

import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from data.captions import Skipped, captioned, good
from data.files import CorpusError, RowError, one_line, read_file, rows_of
from data.images import ImageError
from data.pair_files import find_pairs

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEXTS = (".txt", ".caption")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")

_ROW_GROUPS_KEPT = 4
_FILES_KEPT = 16
"""Parquet files that stay open: a process may often have no more than 1,024 in all."""


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
        """The encoded image of a row.

        Raises `ImageError`, `OSError` or `UnicodeError` where there is none.
        """


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
        rows = _load_dataset(dataset, subset, split, revision, base)
        places = _places_of(dataset, base)
        return _DatasetPairs(rows, places, image_field, caption_field, skip_bad=skip_bad)
    assert path is not None
    kind, files = find_pairs(path, base)
    if kind == "tar":
        return _TarPairs(files, caption_field, skip_bad=skip_bad)
    if kind == "parquet":
        return _ParquetPairs(files, image_field, caption_field, skip_bad=skip_bad)
    folder = None if images is None else base / images
    return _FilePairs(files, folder, image_field, caption_field, skip_bad=skip_bad)


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
                    elif not _is_name(name):
                        found = ascii(name)[:200]
                        what = f"expected the name of an image in {image}, found {found}"
                        yield where, None, RowError(what)
                    else:
                        yield where, (folder or file.parent, name), captioned(row, caption)

        found = good(rows(), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = found.captions, found.places, found.skipped

    def name(self, row: int) -> str:
        return str(self._places[row][1])

    def read(self, row: int) -> bytes:
        folder, name = self._places[row]
        pure = PurePosixPath(name)
        if "://" in name or pure.is_absolute() or ".." in pure.parts:
            raise ImageError(f"{name} is no name within {folder}: nothing else is read")
        data: bytes = (folder / name).read_bytes()
        return data


def _is_name(value: object) -> bool:
    """Whether a file can have that name: one that is UTF-8, without the zero that ends it."""
    try:
        return isinstance(value, str) and value.encode() != b"" and "\0" not in value
    except UnicodeEncodeError:
        return False


class _TarPairs:
    """WebDataset tars: the files of one sample share their name up to the first dot."""

    def __init__(self, files: list[Path], caption: str, *, skip_bad: bool) -> None:
        found = good((row for file in files for row in _samples(file, caption)), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = found.captions, found.places, found.skipped

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
        # Names may be of any bytes. Those that are not UTF-8 differ still when they are escaped.
        with tarfile.open(file, "r:", errors="backslashreplace") as tar:
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
                    yield where, place, captioned({field: _text(tar, text)}, field)
                elif ".json" in parts:
                    yield where, place, captioned(_text(tar, parts[".json"]), field)
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

        found = good(rows(), skip_bad=skip_bad)
        self.captions, self._places, self.skipped = found.captions, found.places, found.skipped

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
                batches = file.read_row_group(group, columns=[column]).to_batches()
                rows = chain.from_iterable(map(rows_of, batches))
                for row, value in enumerate(rows):
                    yield group, row, captioned(value, caption)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable: {one_line(error)}") from None


class _DatasetPairs:
    """A Hugging Face data set that can be asked for any of its rows."""

    def __init__(
        self, dataset: Any, places: list[Path], image: str, caption: str, *, skip_bad: bool
    ) -> None:
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
        rows = ((f"row {n}", n, captioned(_row(texts, n), caption)) for n in range(len(texts)))
        found = good(rows, skip_bad=skip_bad)
        self.captions, self._places, self.skipped = found.captions, found.places, found.skipped
        self._images = dataset.select_columns([image])
        self._image = image
        self._folders = places

    def name(self, row: int) -> str:
        return f"row {self._places[row]}"

    def read(self, row: int) -> bytes:
        value = self._images[self._places[row]][self._image]
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path"):
            return self._file(str(value["path"])).read_bytes()
        return _bytes(value)

    def _file(self, name: str) -> Path:
        if "://" in name:
            raise ImageError(f"{name} is an address: nothing is fetched")
        path = self._folders[0] / name
        inside = any(path.is_relative_to(folder) for folder in self._folders)
        if not inside or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ImageError(f"{name!r} is no name within the data set: nothing else is read")
        return path


def _row(rows: Any, number: int) -> object:
    """A row of a data set; where it is not valid UTF-8, a `RowError`."""
    try:
        return rows[number]
    except UnicodeDecodeError as error:
        return RowError(f"expected valid UTF-8, found: {one_line(error)}")


def _bytes(value: object) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ImageError(f"expected the bytes of an image, found {type(value).__name__}")
    return value


def _is_local(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _places_of(name: str, base: Path) -> list[Path]:
    """The folders that the images of a data set may lie in, by name and by where links lead."""
    import datasets
    from huggingface_hub import constants

    kept = datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH
    places = [Path(place).absolute() for place in (*kept, constants.HF_HUB_CACHE)]
    if _is_local(name):
        places.insert(0, (base / Path(name).expanduser()).absolute())
    return [*places, *(place.resolve() for place in places)]


def _load_dataset(
    name: str, subset: str | None, split: str, revision: str | None, base: Path
) -> Any:
    import datasets

    try:
        if not _is_local(name):
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
