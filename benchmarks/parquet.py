"""What does a cache cost to read as Parquet, beside the same cache as Arrow?

Writes one cache of full width (12,288 in two blocks of random unit vectors) in both formats into a
temporary folder, then reads the same batches of 256 rows from both, in turn, in one process: every
row of as many shards as a reader keeps decoded, in random order within these and none of them
decoded before; and random rows of all shards. The pages are mapped and warm.

    python benchmarks/parquet.py --report benchmarks/results/parquet-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from read import BATCH, WIDTHS, write_cache
from reports import publish

from teacher_cache.format import ROWS_PER_SHARD, ShardFormat
from teacher_cache.parquet import KEPT_WINDOWS, ROWS_PER_WINDOW
from teacher_cache.reader import CacheReader

FORMATS: tuple[ShardFormat, ...] = ("arrow", "parquet")


def rows_per_second(reader: CacheReader, batches: Iterable[NDArray[np.int64]]) -> float:
    rows = 0
    began = time.perf_counter()
    for batch in batches:
        rows += len(reader.vectors(batch))
    return rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6 * ROWS_PER_SHARD)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    generator = np.random.default_rng(1)
    kept = KEPT_WINDOWS * ROWS_PER_WINDOW
    near, far = f"{kept:,} neighbours, shuffled", f"random over {arguments.rows:,} rows"
    speeds: dict[str, list[list[float]]] = {near: [[], []], far: [[], []]}
    with tempfile.TemporaryDirectory() as scratch:
        for name in FORMATS:
            write_cache(Path(scratch, name), arguments.rows, shard_format=name)
        readers = [CacheReader(Path(scratch, name)) for name in FORMATS]
        sizes = [sum(shard.bytes for shard in reader.manifest.shards) for reader in readers]
        for _ in range(arguments.repeats):
            # Through all rows: pages are mapped, and what stays decoded are not the first rows.
            for at in range(0, arguments.rows, BATCH):
                rows = range(at, min(at + BATCH, arguments.rows))
                assert np.array_equal(*(reader.vectors(rows) for reader in readers))
            orders = {
                near: generator.permutation(kept).reshape(-1, BATCH),
                far: generator.integers(0, arguments.rows, (2, BATCH)),
            }
            for order, batches in orders.items():
                for column, reader in zip(speeds[order], readers, strict=True):
                    column.append(rows_per_second(reader, batches))
    lines = [
        "# What does a cache cost to read as Parquet, beside the same cache as Arrow?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}). Python "
        f"{platform.python_version()}, numpy {np.__version__}, pyarrow {pyarrow.__version__}.",
        f"Command: `python benchmarks/parquet.py --rows {arguments.rows} "
        f"--repeats {arguments.repeats}`",
        "",
        f"Batches of {BATCH} rows, width {sum(WIDTHS.values()):,}, float16, pages warm. Parquet is "
        f"decoded in windows of {ROWS_PER_WINDOW:,} rows, of which a reader keeps {KEPT_WINDOWS}. "
        f"The fastest of {arguments.repeats} runs.",
        f"Shards: {sizes[0] / 1e6:,.0f} MB as Arrow, {sizes[1] / 1e6:,.0f} MB as Parquet.",
        "",
        "| order | Arrow, rows/s | Parquet, rows/s | Arrow is faster by |",
        "|---|---|---|---|",
        *(
            f"| {order} | {max(arrow):,.0f} | {max(parquet):,.0f} | "
            f"{max(arrow) / max(parquet):,.0f} × |"
            for order, (arrow, parquet) in speeds.items()
        ),
    ]
    publish(lines, arguments.report)


if __name__ == "__main__":
    main()
