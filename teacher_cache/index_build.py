"""Making the index of a cache: learn from a sample, add every row, measure its recall."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from teacher_cache.files import commit_file, remove_leftovers
from teacher_cache.format import ID_BYTES, CacheError
from teacher_cache.opening import check_folder
from teacher_cache.search import BLOCK_BYTES, Nearest, row_blocks, views
from teacher_cache.search_index import (
    IDS_FILE,
    INDEX_FILE,
    INDEX_FOLDER,
    INDEX_VERSION,
    RECALL_AT,
    RECORD_FILE,
    IndexRecord,
    IndexUnfitError,
    SearchIndex,
    candidates,
    head_checksum,
    open_index,
    recall_in_words,
)
from teacher_cache.writer import write_record

if TYPE_CHECKING:
    from teacher_cache.finish import Phase
    from teacher_cache.reader import CacheReader
    from teacher_cache.search import Rows

TARGET_RECALL = 0.98
"""The share of the true ten nearest rows that the candidates are to hold, in every view."""

_PROJECTION_ROWS = 8192
_ROW_NUMBER_BYTES = 8
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """How an index is made. `width` is the most columns a teacher's block is projected on,
    `sample` the rows it is trained on, `queries` those on which its recall is measured."""

    lists: int
    sample: int
    width: int = 256
    queries: int = 64
    seed: int = 0

    @classmethod
    def of(cls, rows: int) -> Settings:
        """Settings for so many rows: lists of about √rows, 64 training rows for each list."""
        lists = 2 ** max(0, round(np.log2(1.5 * np.sqrt(rows))))
        return cls(min(lists, rows), sample=min(rows, max(64 * lists, _PROJECTION_ROWS)))


@dataclass(frozen=True, slots=True)
class Cost:
    """What an index takes, in bytes: of disk to keep, of memory (at most) to make."""

    disk: int
    memory: int


def cost(reader: CacheReader, settings: Settings) -> Cost:
    """The cost of an index, known before it is made."""
    rows, width = len(reader), reader.manifest.width
    reduced = sum(min(settings.width, block.width) for block in reader.manifest.blocks)
    lists = rows * (reduced + _ROW_NUMBER_BYTES)
    head = _FLOAT_BYTES * reduced * (width + settings.lists)
    widest = max(block.width for block in reader.manifest.blocks)
    learning = _FLOAT_BYTES * (
        settings.sample * reduced + min(settings.sample, _PROJECTION_ROWS) * (width + widest)
    )
    # Lists grow by doubling, so half of each may be room to grow. A block of rows is also there in
    # float32, projected, and as codes: measured, at most seven times its size.
    adding = 2 * lists + 8 * min(BLOCK_BYTES, rows * width * 2)
    return Cost(disk=lists + head + rows * ID_BYTES, memory=head + max(adding, learning))


def ensure_index(
    reader: CacheReader,
    folder: Path,
    settings: Settings | None = None,
    *,
    phase: Phase,
    tell: Callable[[str], None] = lambda _: None,
) -> SearchIndex:
    """The index in a folder, made there first where none fits.

    `tell` is told why it is made, what that takes, and the recall.

    Raises:
        CacheError: the folder cannot be written to or has too little room, or it is the cache's own
            and a link.
    """
    if folder == reader.path / INDEX_FOLDER:
        check_folder(folder)  # what lies in a cache may be a stranger's: written is nowhere else
    try:
        return open_index(folder, reader)
    except IndexUnfitError as unfit:
        why = str(unfit)
    settings = settings or Settings.of(len(reader))
    price = cost(reader, settings)
    tell(
        f"the index in {folder} {why}: making it for {len(reader):,} rows, which takes "
        f"{_megabytes(price.disk)} of disk and up to {_megabytes(price.memory)} of memory"
    )
    try:
        build_index(reader, folder, settings, phase=phase)
    except OSError as error:
        raise CacheError(
            f"no index can be written to {folder} ({error.strerror or error}); give another place "
            "with --index FOLDER, or compare with every row: --exact"
        ) from None
    index = open_index(folder, reader)
    tell(f"recall@{RECALL_AT} of the index: {recall_in_words(index.record)}")
    return index


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def build_index(reader: CacheReader, folder: Path, settings: Settings, *, phase: Phase) -> None:
    """Make the index of a cache: written aside, the record last.

    Rows are read twice, a sample to learn from and then all of them in order; `queries` of the
    sample are compared with every row on the way, which tells the recall and how many lists must
    be looked into for `TARGET_RECALL`.

    Raises:
        CacheError: there is too little room on the disk, or the cache is damaged.
        OSError: the folder cannot be written to.
    """
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    _check_own(folder)
    _check_room(folder, cost(reader, settings).disk)
    generator = np.random.default_rng(settings.seed)
    sample = generator.choice(len(reader), min(settings.sample, len(reader)), replace=False)
    transform = _projection(reader, sample[:_PROJECTION_ROWS], settings)
    ivf = _trained(reader, np.sort(sample), transform, settings, phase)
    index = faiss.IndexPreTransform(transform, ivf)
    sought = _queries(reader, sample[: settings.queries])
    _add_rows(reader, index, sought, phase)

    def write(stream: BinaryIO) -> None:
        writer: Any = faiss.PyCallbackIOWriter  # type: ignore[attr-defined]  # defined at import
        faiss.write_index(index, writer(stream.write))

    probes, recall = _calibrated(index, sought, settings.lists)
    _write_ids(reader, folder / IDS_FILE)
    size = commit_file(folder / INDEX_FILE, write).bytes
    head = size - len(reader) * (ivf.code_size + _ROW_NUMBER_BYTES)
    record = IndexRecord(
        version=INDEX_VERSION,
        identity=reader.identity,
        bytes=size,
        head_bytes=head,
        head_checksum=head_checksum(folder / INDEX_FILE, head),
        lists=settings.lists,
        probes=probes,
        recall=recall,
    )
    write_record(folder / RECORD_FILE, record)


def _check_own(folder: Path) -> None:
    """An index has a folder to itself: nothing of another's is written over."""
    for path in folder.iterdir():
        if path.name not in (INDEX_FILE, IDS_FILE, RECORD_FILE) and path.suffix != ".tmp":
            raise CacheError(
                f"{folder} is no index's folder: it holds {path.name}; give an empty folder or a "
                "new one with --index"
            )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"the index needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are "
            "free; give another place with --index FOLDER, or compare with every row: --exact"
        )


def _projection(reader: CacheReader, rows: Rows, settings: Settings) -> Any:
    """Each block on its leading directions, side by side; a narrow block stays as it is."""
    import faiss
    from sklearn.utils.extmath import randomized_svd

    parts = []
    vectors_NW = reader.vectors(np.sort(rows))
    for block in reader.manifest.blocks:
        width = min(settings.width, block.width, len(rows))
        part = np.zeros((width, reader.manifest.width), np.float32)
        if width == block.width:
            part[:, block.columns] = np.eye(width)
        else:
            vectors = vectors_NW[:, block.columns].astype(np.float32)
            _, _, directions = randomized_svd(vectors, width, random_state=settings.seed)
            part[:, block.columns] = directions
        parts.append(part)
    matrix = np.concatenate(parts)
    transform = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(matrix.reshape(-1), transform.A)
    transform.is_trained = True
    return transform


def _trained(
    reader: CacheReader, rows: Rows, transform: Any, settings: Settings, phase: Phase
) -> Any:
    import faiss

    reduced = np.empty((len(rows), transform.d_out), np.float32)
    step = 1024
    with phase("sampling", len(rows)) as advance:
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            reader.prefetch(chosen)
            reduced[start : start + step] = transform.apply(
                reader.vectors(chosen).astype(np.float32)
            )
            advance(len(chosen))
    width = transform.d_out
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        settings.lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    ivf.cp.min_points_per_centroid = 1  # fewer than 39 for a list is a matter of recall: measured
    ivf.cp.seed = settings.seed + 1
    ivf.train(reduced)
    return ivf


def _queries(reader: CacheReader, rows: Rows) -> list[Nearest]:
    k, teachers = max(1, min(RECALL_AT, len(reader) - 1)), len(reader.teachers)
    return [
        Nearest(vector_W, view, k, teachers=teachers, own=int(row))
        for view in views(reader)
        for row, vector_W in zip(rows, reader.vectors(rows), strict=True)
    ]


def _add_rows(reader: CacheReader, index: Any, sought: list[Nearest], phase: Phase) -> None:
    probes_WQ = np.stack([each.probe(reader.manifest.width) for each in sought], axis=1)
    with phase("indexing", len(reader)) as advance:
        for start, rows_NW in row_blocks(reader):
            exact_NW = rows_NW.astype(np.float32)
            index.add(exact_NW)
            products_NQ = exact_NW @ probes_WQ
            for each, products_N in zip(sought, products_NQ.T, strict=True):
                places = np.flatnonzero(products_N >= each.radius(products_N))
                each.offer(start + places, rows_NW[places])
            advance(len(rows_NW))


def _write_ids(reader: CacheReader, path: Path) -> None:
    def write(stream: BinaryIO) -> None:
        for number in range(len(reader.manifest.shards)):
            stream.write(reader.shard_ids(number))

    if commit_file(path, write).checksum != reader.manifest.ids_digest:
        raise CacheError(
            f"the ids in {reader.path} are not those of its manifest; see what is wrong with: "
            f"jasper-cache verify {reader.path}"
        )


def _calibrated(index: Any, sought: list[Nearest], lists: int) -> tuple[int, dict[str, float]]:
    """The fewest lists that give every view the target recall (all, where none do); the recall."""
    probes = 1
    while True:
        shares: dict[str, list[float]] = {}
        for each in sought:
            found = candidates(index, each.probe(index.d), each.k, probes)
            kept = float(np.isin(each.rows, found).mean()) if len(each.rows) else 1.0
            shares.setdefault(each.view.name, []).append(kept)
        recall = {name: round(float(np.mean(values)), 4) for name, values in shares.items()}
        if probes == lists or min(recall.values()) >= TARGET_RECALL:
            return probes, recall
        probes = min(2 * probes, lists)
