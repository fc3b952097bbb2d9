"""The shards of a finished cache, each opened when a row of it is asked for first.

Arrow shards are mapped: a row is where it lies in the file. Parquet shards are decoded, window by
window (`teacher_cache.parquet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from teacher_cache import opening
from teacher_cache.format import CacheError, Manifest, shard_path
from teacher_cache.mapping import will_need

if TYPE_CHECKING:
    from teacher_cache.parquet import Windows

_MATRICES = ("tokens", "norms", "embedding", "pooled")


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A mapped shard: its batch, its columns as they are indexed by row, the vectors' bytes."""

    batch: pa.RecordBatch
    columns: dict[str, Any]
    data: memoryview


class Shards:
    """The columns of a cache's shards. A row's place is its shard's number and its place there."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._mapped: dict[int, _Mapped] = {}
        self._decodes = any(record.format == "parquet" for record in manifest.shards)

    def batch(self, number: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Columns of one shard, or all of them.

        Raises:
            CacheError: the file is missing, damaged, or belongs to another cache or place.
        """
        if self._is_parquet(number):
            return self._windows.shard(number, columns)
        batch = self._map(number).batch
        return batch if columns is None else batch.select(columns)

    def values(self, name: str, index: NDArray[np.int64]) -> list[Any]:
        """One column of these rows: rows of matrices where they lie, Arrow scalars otherwise."""
        pairs = self._pairs(index)
        columns = {number: self._column(number, name) for number in dict(pairs)}
        if not self._decodes:
            return [columns[number][place] for number, place in pairs]
        values: list[Any] = [None] * len(pairs)
        # In the order they lie in, so that every window is decoded once.
        for row in sorted(range(len(pairs)), key=pairs.__getitem__):
            number, place = pairs[row]
            values[row] = columns[number][place]
        return values

    def vectors(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """The whole vectors of these rows [n, width]."""
        width = self.manifest.width
        if self._decodes:
            return stacked(self.values("embedding", index), width)
        # Joining bytes costs half of what numpy takes to make and stack as many small arrays.
        size = width * np.dtype(np.float16).itemsize
        pairs = self._pairs(index)
        data = {number: self._map(number).data for number in dict(pairs)}
        found = bytearray().join([data[n][place * size : (place + 1) * size] for n, place in pairs])
        return np.frombuffer(found, np.float16).reshape(-1, width)

    def prefetch(self, index: NDArray[np.int64]) -> None:
        """Ask the kernel for the vectors of these rows; returns at once."""
        for number, place in self._pairs(index):
            if not self._is_parquet(number):
                will_need(self._map(number).columns["embedding"][place])

    def _pairs(self, index: NDArray[np.int64]) -> list[tuple[int, int]]:
        numbers, places = np.divmod(index, self.manifest.rows_per_shard)
        return list(zip(numbers.tolist(), places.tolist(), strict=True))

    def _column(self, number: int, name: str) -> Any:
        if self._is_parquet(number):
            return self._windows.column(number, name)
        return self._map(number).columns[name]

    def _is_parquet(self, number: int) -> bool:
        return self.manifest.shards[number].format == "parquet"

    @cached_property
    def _windows(self) -> Windows:
        from teacher_cache.parquet import Windows

        # Functions of their own, not methods: in a cycle of references, the files would stay mapped
        # until the collector comes by.
        place = self.path, self.manifest
        return Windows(partial(_path_of, *place), partial(_check, *place), _indexable)

    def _map(self, number: int) -> _Mapped:
        known = self._mapped.get(number)
        if known is not None:
            return known
        path, record = _path_of(self.path, self.manifest, number), self.manifest.shards[number]
        try:
            batch = opening.map_shard(path, record, opening.expected_schema(self.manifest, number))
        except CacheError as error:
            raise CacheError(f"{error}; {_advice(self.path)}") from None
        columns = {name: _indexable(name, batch.column(name)) for name in batch.schema.names}
        data = columns["embedding"].reshape(-1).view(np.uint8).data
        mapped = self._mapped[number] = _Mapped(batch, columns, data)
        return mapped


def stacked(rows: list[NDArray[Any]], width: int, dtype: type = np.float16) -> NDArray[Any]:
    """Rows copied one below the other [n, width]."""
    found: NDArray[Any] = np.empty((len(rows), width), dtype)
    if rows:
        # Cheaper for many small copies than indexed assignment.
        np.concatenate(rows, out=found.reshape(-1))
    return found


def _path_of(path: Path, manifest: Manifest, number: int) -> Path:
    return shard_path(path, number, manifest.shards[number])


def _check(path: Path, manifest: Manifest, number: int, schema: pa.Schema, rows: int) -> None:
    """Refuse a shard of another cache or place, or one without the manifest's columns."""
    file = _path_of(path, manifest, number)
    try:
        opening.check_folder(file.parent)
        opening.check_schema(schema, opening.expected_schema(manifest, number))
        if rows != manifest.shards[number].rows:
            raise ValueError("it has other rows than expected")
    except ValueError as error:
        raise CacheError(f"{file} cannot be read: {error}; {_advice(path)}") from None


def _advice(path: Path) -> str:
    return f"see what else is wrong with: jasper-cache verify {path}"


def _indexable(name: str, column: pa.Array) -> Any:
    """A column as it is indexed by row: [n, width] without a copy, or the Arrow array itself."""
    if name not in _MATRICES:
        return column
    values = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)
