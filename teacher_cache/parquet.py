"""Shards as Parquet, for who must have them: the same columns, decoded when they are read.

A window of rows (a row group) is the least that can be decoded. So a row costs the decoding of its
window: read neighbours together. Only a program that meets a Parquet shard imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.format import CacheError, regular_file, shortened

ROWS_PER_WINDOW = 1024
"""25 MB of vectors at 12,288 wide."""

KEPT_WINDOWS = 32
"""Decoded windows of each column that a reader keeps, those used last: 805 MB of vectors at 12,288
wide, or four shards of 8,192 rows."""

_COMPRESSED = ("id", "text", "source")


def write(stream: BinaryIO, table: pa.Table) -> None:
    """Write rows in windows, with a checksum of every page. Vectors are not compressed."""
    pq.write_table(
        table,
        pa.PythonFile(stream, "w"),
        row_group_size=ROWS_PER_WINDOW,
        compression=dict.fromkeys(_COMPRESSED, "zstd"),
        use_dictionary=["source"],
        write_statistics=False,
        write_page_checksum=True,
    )


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a Parquet shard, indexed by row; rows of matrices are copies."""

    window: Callable[[int], Any]

    def __getitem__(self, row: int) -> Any:
        window, place = divmod(row, ROWS_PER_WINDOW)
        value = self.window(window)[place]
        # A view would keep its whole window in memory.
        return value.copy() if isinstance(value, np.ndarray) else value


class Windows:
    """The Parquet shards of a cache, and the windows of them that were decoded last.

    `path_of` names the file of a shard; `check` is given its number, schema and rows and refuses
    what is not the cache's; `indexable` makes of a column's name and array what is indexed by row.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        check: Callable[[int, pa.Schema, int], None],
        indexable: Callable[[str, pa.Array], Any],
    ) -> None:
        self._path_of = path_of
        self._check = check
        self._indexable = indexable
        self._decoded: dict[str, Callable[[int, int], Any]] = {}

    def column(self, number: int, name: str) -> Column:
        """A column of shard `number`, decoded where it is indexed."""
        if name not in self._decoded:
            self._decoded[name] = lru_cache(KEPT_WINDOWS)(partial(self._decode, name))
        return Column(partial(self._decoded[name], number))

    def shard(self, number: int, columns: Sequence[str] | None) -> pa.RecordBatch:
        """All rows of shard `number`; some of its columns, or all of them.

        Raises:
            CacheError: the file is missing, damaged, or not the cache's.
        """
        with self._opened(number) as file:
            return _batch(file.read(columns=None if columns is None else list(columns)))

    def _decode(self, name: str, number: int, window: int) -> Any:
        with self._opened(number) as file:
            batch = _batch(file.read_row_group(window, columns=[name]))
        return self._indexable(name, batch.column(name))

    @contextmanager
    def _opened(self, number: int) -> Iterator[pq.ParquetFile]:
        path = self._path_of(number)
        try:
            regular_file(path)  # before it is opened: a pipe would be waited for
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self._check(number, file.schema_arrow, file.metadata.num_rows)
                _check_windows(file.metadata)
                yield file
        except (pa.ArrowException, ValueError, OSError) as error:
            cache = path.parent.parent
            raise CacheError(
                f"{path} cannot be read: {error}; "
                f"see what else is wrong with: jasper-cache verify {cache}"
            ) from None


def _check_windows(metadata: pq.FileMetaData) -> None:
    """A row is sought where it lies if every row group but the last is a whole window."""
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    whole = all(count == ROWS_PER_WINDOW for count in rows[:-1])
    if not (whole and all(count <= ROWS_PER_WINDOW for count in rows[-1:])):
        raise ValueError(
            f"it has row groups of {shortened(rows)} rows, expected {ROWS_PER_WINDOW} in each but "
            "the last"
        )


def _batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) != 1:
        raise ValueError("it has no rows, or more text than one column of Arrow holds")
    batches[0].validate(full=True)
    return batches[0]
