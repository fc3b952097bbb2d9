"""How fast are random rows that are not in memory, as most of a 197 GB cache are not?

Writes a cache of full width and a raw file of the same rows into a temporary folder. Before every
batch the pages of all files are given back to the kernel (posix_fadvise DONTNEED), so that each row
comes from the disk. Three arms in turn: a plain memory map; CacheReader.vectors; and the same after
CacheReader.prefetch, which asks for all rows of the batch at once.

    python benchmarks/cold.py --report benchmarks/results/cold-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from read import BATCH, WIDTHS, write_cache, write_raw
from reports import publish

from teacher_cache.format import ROWS_PER_SHARD
from teacher_cache.reader import CacheReader

PLAIN = "np.memmap, fancy index"


def evict(folder: Path) -> None:
    """Give the pages of every file of a folder back; mapped pages that were touched stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * ROWS_PER_SHARD)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="a folder on the disk that counts")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    generator = np.random.default_rng(1)
    width = sum(WIDTHS.values())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        write_cache(folder / "cache", arguments.rows)
        raw = folder / "raw.f16"
        write_raw(raw, CacheReader(folder / "cache"))

        def plain(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Callable[[], object]:
            mapped = np.memmap(raw, np.float16, "r", shape=(arguments.rows, width))
            return lambda: mapped[rows]

        def opened(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> CacheReader:
            """A new mapping, whose shards are open but whose vectors were never touched."""
            reader = CacheReader(folder / "cache")
            reader.texts(range(0, arguments.rows, ROWS_PER_SHARD))
            return reader

        def read(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Callable[[], object]:
            reader = opened(rows)
            return lambda: reader.vectors(rows)

        def prefetched(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Callable[[], object]:
            reader = opened(rows)

            def work() -> object:
                reader.prefetch(rows)
                return reader.vectors(rows)

            return work

        arms = {
            PLAIN: plain,
            "CacheReader.vectors": read,
            "prefetch, then vectors": prefetched,
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(arguments.repeats + 1):
            for name, arm in arms.items():
                rows = generator.integers(0, arguments.rows, BATCH)
                work = arm(rows)
                evict(folder)
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds[PLAIN][1:])
    lines = [
        "# How fast are random rows that are not in memory?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), load average "
        f"{os.getloadavg()[0]:.1f} at the end. Python {platform.python_version()}, numpy "
        f"{np.__version__}.",
        f"Command: `python benchmarks/cold.py --rows {arguments.rows} "
        f"--repeats {arguments.repeats}`",
        "",
        f"Random batches of {BATCH} rows of {arguments.rows:,}, width {width:,}, float16; pages "
        "given back before each batch; the arms take turns.",
        "",
        "| arm | median ms | fastest ms | rows/s | speed against np.memmap |",
        "|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        lines.append(
            f"| {name} | {1e3 * median:.1f} | {1e3 * min(times[1:]):.1f} | {BATCH / median:,.0f} | "
            f"{base / median:.1f} |"
        )
    publish(lines, arguments.report)


if __name__ == "__main__":
    main()
