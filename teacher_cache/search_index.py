"""An index beside a cache that is too large to be compared row by row.

One index serves each teacher, any of them, and all together: it holds whole rows, and a query that
is zero outside of one teacher's block has with a row the product of that block alone. Each block is
projected on its leading directions (of the sample's uncentred second moment: those keep inner
products best), the rows are divided into lists by k-means, and kept at one byte a column. The index
only proposes candidates; see `search.search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format import (
    ID_BYTES,
    CacheError,
    Record,
    checksum,
    read_json,
    regular_file,
)
from teacher_cache.search import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from teacher_cache.reader import CacheReader
    from teacher_cache.search import Float32, Rows

INDEX_FOLDER = "search"
INDEX_FILE = "index.faiss"
IDS_FILE = "ids.bin"
RECORD_FILE = "index.json"
INDEX_VERSION = 1

RECALL_AT = 10
_CANDIDATES = 20
"""Rows compared exactly for each neighbour that is asked for."""


@dataclass(frozen=True)
class IndexRecord(Record):
    """`index.json`: what the index was made from, and what it was found to be worth.

    The first `head_bytes` of the file are everything but the rows' codes and numbers; they have
    the checksum. A damaged code or number can cost a neighbour, nothing else. `probes` is the
    number of lists that are looked into, `recall` what that gave, by view.
    """

    version: int
    identity: str
    bytes: int
    head_bytes: int
    head_checksum: str
    lists: int
    probes: int
    recall: Mapping[str, float]


class SearchIndex:
    """An index opened for searching. Its lists stay on disk, mapped: only those needed are read."""

    def __init__(self, record: IndexRecord, index: Any, ids: NDArray[np.uint64]) -> None:
        self.record = record
        self._index = index
        self._ids = ids

    def candidates(self, probe_W: Float32, k: int) -> Rows:
        """Row numbers among which the k nearest to a probe most likely are."""
        return candidates(self._index, probe_W, k, self.record.probes)

    def row_of(self, id_: bytes) -> int | None:
        """The row with this id, None if there is none."""
        return place_of(self._ids, id_)


def candidates(index: Any, probe_W: Float32, k: int, probes: int) -> Rows:
    """What a faiss index proposes for a probe, when so many of its lists are looked into."""
    import faiss

    faiss.extract_index_ivf(index).nprobe = probes
    count = min(_CANDIDATES * k, index.ntotal)
    _, found = index.search(probe_W[None], count)
    # Where too few were found -1 stands; a damaged number may be anything.
    rows: Rows = found[0][(found[0] >= 0) & (found[0] < index.ntotal)]
    return np.unique(rows)


class IndexUnfitError(Exception):
    """An index that is not there, is damaged or is another cache's: it has to be made again."""


def open_index(folder: Path, reader: CacheReader) -> SearchIndex:
    """Open the index in a folder.

    Raises:
        IndexUnfitError: it is missing, damaged, cut short, or of another cache; the message says
            which.
    """
    import faiss

    record = _read_record(folder / RECORD_FILE)
    if record.identity != reader.identity:
        raise IndexUnfitError(f"is of another cache, {record.identity}")
    path, ids = folder / INDEX_FILE, folder / IDS_FILE
    for file, size in ((path, record.bytes), (ids, len(reader) * ID_BYTES)):
        found = _size(file)
        if found != size:
            raise IndexUnfitError(f"is damaged: {file.name} has {found} bytes, not {size}")
    if head_checksum(path, record.head_bytes) != record.head_checksum:
        raise IndexUnfitError(f"is damaged: {path.name} has another checksum")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError:
        raise IndexUnfitError(f"cannot be read by faiss {faiss.__version__}") from None
    return SearchIndex(record, index, np.memmap(ids, np.uint64, "r").reshape(-1, 2))


def _size(path: Path) -> int:
    try:
        return regular_file(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except CacheError as error:
        raise IndexUnfitError(f"is damaged: {error}") from None


def _read_record(path: Path) -> IndexRecord:
    try:
        data = read_json(path)
        if isinstance(data, dict) and data.get("version") != INDEX_VERSION:
            raise IndexUnfitError(f"has the version {data.get('version')}, not {INDEX_VERSION}")
        record = IndexRecord.from_json(data, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise IndexUnfitError("is not there yet") from None
    except CacheError as error:
        raise IndexUnfitError(f"is damaged: {error}") from None
    if not (isinstance(record.recall, dict) and 1 <= record.probes <= record.lists):
        raise IndexUnfitError(f"is damaged: {path} does not add up")
    return record


def head_checksum(path: Path, size: int) -> str:
    """The checksum of the first bytes of a file."""
    with path.open("rb") as stream:
        return checksum(stream.read(size))


def recall_in_words(record: IndexRecord) -> str:
    """Recall by view, and what was looked into for it."""
    shares = ", ".join(f"{name} {share:.3f}" for name, share in record.recall.items())
    return f"{shares}; {record.probes} of {record.lists} lists are looked into"
