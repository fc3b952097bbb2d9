"""Memory-mapped rows of a finished cache: what a trainer sees of the teachers.

Opening reads the manifest and the sizes of the files; vectors are read when they are asked for.
Parquet shards are decoded instead, window by window. No torch, and nothing else of ours but the
format and, where there are Parquet shards, how they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from teacher_cache import opening
from teacher_cache.format import ID_BYTES, Block, CacheError
from teacher_cache.shards import Shards, stacked


class CacheReader:
    """A finished cache, opened for reading.

    Rows are numbered from 0; held-out rows are the last `manifest.held_out_rows`. `len(reader)`
    counts them all. Rows may be asked for in any order, and more than once. `check_sizes` looks
    at the size of every shard before the first read, `verify` reads them all and compares their
    checksums, and tells `advance` of every one.

    Raises:
        CacheError: the folder holds no finished cache, or its files are not what it says.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        check_sizes: bool = True,
        verify: bool = False,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path = Path(path)
        self.manifest = opening.read_manifest(self.path)
        if check_sizes:
            opening.check_sizes(self.path, self.manifest)
        if verify:
            opening.check_checksums(self.path, self.manifest, advance)
        self._shards = Shards(self.path, self.manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def identity(self) -> str:
        """What a checkpoint keeps to know its cache again."""
        return self.manifest.identity

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of the blocks, in their order."""
        return tuple(block.teacher for block in self.manifest.blocks)

    @property
    def train_rows(self) -> range:
        """The rows to train on."""
        return range(self.manifest.rows - self.manifest.held_out_rows)

    @property
    def held_out_rows(self) -> range:
        """The rows never trained on."""
        return range(self.manifest.rows - self.manifest.held_out_rows, self.manifest.rows)

    def blocks(self, teachers: Sequence[str] | None = None) -> tuple[Block, ...]:
        """The blocks of the named teachers, in the order asked; all of them for None.

        Raises:
            CacheError: a name is not in the cache, or is given twice.
        """
        if teachers is None:
            return self.manifest.blocks
        by_name = {block.teacher: block for block in self.manifest.blocks}
        unknown = [name for name in teachers if name not in by_name]
        if unknown or not teachers or len(set(teachers)) != len(teachers):
            raise CacheError(
                f"{self.path} holds the teachers {', '.join(by_name)}; "
                f"expected some of them, each once, found {', '.join(teachers) or 'none'}"
            )
        return tuple(by_name[name] for name in teachers)

    def width(self, teachers: Sequence[str] | None = None) -> int:
        """The width of `vectors(…, teachers)`."""
        return sum(block.width for block in self.blocks(teachers))

    def vectors(
        self, rows: ArrayLike | Iterable[int], teachers: Sequence[str] | None = None
    ) -> NDArray[np.float16]:
        """Unit rows [n, width] in float16: the normalised concatenation of the teachers' blocks.

        For some of the teachers, their blocks are cut out, concatenated in the order asked and
        normalised again (in float32).

        Raises:
            IndexError: a row is outside the cache.
            CacheError: an unknown teacher, or a damaged shard.
        """
        blocks = self.blocks(teachers)
        index = self._rows(rows)
        if blocks == self.manifest.blocks:
            return self._shards.vectors(index)
        found = self._shards.values("embedding", index)
        parts = np.concatenate(
            [stacked([row[block.columns] for row in found], block.width) for block in blocks],
            axis=1,
            dtype=np.float32,
        )
        parts /= np.sqrt(np.einsum("nw,nw->n", parts, parts))[:, None]
        return parts.astype(np.float16)

    def pooled(self, rows: ArrayLike | Iterable[int]) -> NDArray[np.float16]:
        """The kept pooled states [n, H] of one teacher's body, not normalised.

        Which teacher, and of which body: `manifest.pooled`.

        Raises:
            IndexError: a row is outside the cache.
            CacheError: the cache keeps none, or a shard is damaged.
        """
        kept = self.manifest.pooled
        if kept is None:
            raise CacheError(
                f"{self.path} keeps no pooled state; build one with: "
                "jasper-cache build --keep-pooled TEACHER"
            )
        return stacked(self._values("pooled", rows), kept.width)

    def prefetch(self, rows: ArrayLike | Iterable[int]) -> None:
        """Ask the kernel for the vectors of these rows, which will be read soon; returns at once.

        Worth it where the cache is larger than memory: the rows of a batch are then fetched from
        the disk together, not one after the other. Parquet shards are not fetched ahead.
        """
        self._shards.prefetch(self._rows(rows))

    def tokens(self, rows: ArrayLike | Iterable[int]) -> NDArray[np.int32]:
        """How many tokens each teacher saw [n, teachers], prompt and special ones included."""
        return stacked(self._values("tokens", rows), len(self.manifest.blocks), np.int32)

    def norms(self, rows: ArrayLike | Iterable[int]) -> NDArray[np.float32]:
        """The L2 norms of the teachers' raw vectors [n, teachers]."""
        return stacked(self._values("norms", rows), len(self.manifest.blocks), np.float32)

    def texts(self, rows: ArrayLike | Iterable[int]) -> list[str]:
        """The texts of the rows."""
        return [value.as_py() for value in self._values("text", rows)]

    def ids(self, rows: ArrayLike | Iterable[int]) -> list[str]:
        """The ids of the rows: XXH3-128 of the text's UTF-8, in hexadecimal."""
        return [value.as_py().hex() for value in self._values("id", rows)]

    def sources(self, rows: ArrayLike | Iterable[int]) -> list[str]:
        """The corpus sources the rows came from."""
        return [value.as_py() for value in self._values("source", rows)]

    def shard(self, number: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Columns of one shard, or all of them: memory-mapped, or decoded where it is Parquet.

        Raises:
            CacheError: the file is missing, damaged, or belongs to another cache or place.
        """
        return self._shards.batch(number, columns)

    def shard_ids(self, number: int) -> memoryview:
        """The ids of a shard, `ID_BYTES` each, one after the other.

        Raises:
            CacheError: as `shard`.
        """
        batch = self.shard(number, ["id"])
        return memoryview(batch.column("id").buffers()[1])[: batch.num_rows * ID_BYTES]

    def _rows(self, rows: ArrayLike | Iterable[int]) -> NDArray[np.int64]:
        index = np.asarray(rows if hasattr(rows, "__len__") else list(rows))  # type: ignore[arg-type]
        if index.size == 0:
            return np.empty(0, np.int64)
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise IndexError(f"expected a list of row numbers, found {index.dtype} {index.shape}")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, asked for {low}…{high}")
        return index.astype(np.int64)

    def _values(self, name: str, rows: ArrayLike | Iterable[int]) -> list[Any]:
        return self._shards.values(name, self._rows(rows))
