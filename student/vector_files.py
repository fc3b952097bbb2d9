"""Vectors in a file, row by row in the order of their texts: .npy or Parquet. No torch.

A file appears whole or not at all; memory holds one chunk, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from student.durable import whole_file
from student.spec import StudentError

CHUNK = 2048
"""Rows that are computed and written together: sorted by length among so many, hardly any padding
is left; at a width of 12,288 they are 100 MB."""

Vectors = NDArray[np.float32]
Row = tuple[int, str]


class _Writer(Protocol):
    def write(self, rows: list[Row], vectors: NDArray[Any]) -> None: ...

    def close(self) -> None: ...


def refuse(out: Path) -> None:
    """Say what cannot be written to, before anything is computed.

    Raises:
        StudentError: `out` exists, or its suffix names no format.
    """
    if out.suffix not in _WRITERS:
        raise StudentError(f"{out}: vectors are written as {' or '.join(_WRITERS)}")
    if out.exists():
        raise StudentError(f"{out} exists; give another name to write to, or remove it")


def write_vectors(
    out: Path,
    rows: Iterable[Row],
    embed: Callable[[list[str]], Vectors],
    *,
    count: int,
    width: int,
    dtype: str = "float32",
    with_text: bool = False,
) -> None:
    """Write the vectors of `count` texts, which `embed` makes of a list of them: [n, width].

    `rows` are texts, each with its place. `.npy` holds an array [count, width]. Parquet has the
    columns `place`, `text` where it is asked for, and `vector`.

    Raises:
        StudentError: `refuse` says when; a value that is no number, or too large for `dtype`.
    """
    refuse(out)
    with whole_file(out) as aside:
        writer = _WRITERS[out.suffix](aside, count, width, np.dtype(dtype), with_text)
        try:
            for chunk in _chunks(rows):
                with np.errstate(over="ignore"):
                    vectors = embed([text for _, text in chunk]).astype(dtype)
                _check(chunk, vectors)
                writer.write(chunk, vectors)
        finally:
            writer.close()


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _check(rows: list[Row], vectors: NDArray[Any]) -> None:
    fine = np.isfinite(vectors).all(axis=1)
    if not fine.all():
        place = rows[int(np.argmin(fine))][0]
        raise StudentError(
            f"the vector of text {place} has a value that is no number in {vectors.dtype}; "
            "float32 holds larger ones"
        )


class _Npy:
    """An array written from its first row to its last."""

    def __init__(self, path: Path, count: int, width: int, dtype: np.dtype[Any], _: bool) -> None:
        self._file: IO[bytes] = path.open("wb")
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, _: list[Row], vectors: NDArray[Any]) -> None:
        self._file.write(vectors.tobytes())

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A table of which each chunk is a row group."""

    def __init__(
        self, path: Path, _: int, width: int, dtype: np.dtype[Any], with_text: bool
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [pa.field("place", pa.int64(), nullable=False)]
        if with_text:
            columns.append(pa.field("text", pa.string(), nullable=False))
        vector = pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), width)
        self._schema = pa.schema([*columns, pa.field("vector", vector, nullable=False)])
        self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=False)

    def write(self, rows: list[Row], vectors: NDArray[Any]) -> None:
        import pyarrow as pa

        places, texts = zip(*rows, strict=True)
        columns = [pa.array(places, pa.int64())]
        if "text" in self._schema.names:
            columns.append(pa.array(texts, pa.string()))
        kind = self._schema.field("vector").type
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind))
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[str, Callable[..., _Writer]] = {".npy": _Npy, ".parquet": _Parquet}
