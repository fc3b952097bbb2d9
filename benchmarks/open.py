"""How long does it take to open a cache of 8 million rows, and what memory does that need?

Writes the manifest of a cache of so many full shards, and for each shard a sparse file of the
recorded size: opening looks at sizes and records, never at vectors. Each cache is opened by a
process of its own, which reports the time and what its resident memory grew by.

    python benchmarks/open.py --report benchmarks/results/open-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from read import WIDTHS, blocks_of_widths
from reports import publish

from teacher_cache.format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    ROWS_PER_SHARD,
    VECTOR_DTYPE,
    FileRecord,
    Manifest,
    checksum,
    identity_of,
    shard_path,
)
from teacher_cache.writer import write_record

SHARD_BYTES = ROWS_PER_SHARD * (2 * sum(WIDTHS.values()) + 1400)

_OPEN = """
import sys, time
import numpy, pyarrow, xxhash
from teacher_cache.reader import CacheReader

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

before, began = resident(), time.perf_counter()
reader = CacheReader(sys.argv[1])
print(time.perf_counter() - began, resident() - before, len(reader))
"""


def write_sparse_cache(folder: Path, shards: int) -> None:
    """A finished cache as far as opening can see."""
    blocks = blocks_of_widths()
    digest = checksum(b"ids")
    records = tuple(
        FileRecord(ROWS_PER_SHARD, SHARD_BYTES, checksum(str(n).encode()), digest)
        for n in range(shards)
    )
    for index, record in enumerate(records):
        path = shard_path(folder, index, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(SHARD_BYTES)
    identity = identity_of(digest, 0, ROWS_PER_SHARD, blocks, None)
    manifest = Manifest(
        FORMAT_VERSION, identity, shards * ROWS_PER_SHARD, 0, ROWS_PER_SHARD, sum(WIDTHS.values()),
        VECTOR_DTYPE, digest, blocks, None, {}, {}, records,
    )  # fmt: skip
    write_record(folder / MANIFEST_FILE, manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 977])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# How long does it take to open a cache, and what memory does that need?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), load average "
        f"{os.getloadavg()[0]:.1f} at the start. Python {platform.python_version()}.",
        f"Command: `python benchmarks/open.py --shards {' '.join(map(str, arguments.shards))} "
        f"--repeats {arguments.repeats}`",
        "",
        f"Sparse shards of {SHARD_BYTES / 1e6:,.0f} MB; medians of {arguments.repeats} processes.",
        "",
        "| shards | rows | size | ms to open | resident memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as scratch:
            write_sparse_cache(Path(scratch), shards)
            results = [
                subprocess.run(
                    [sys.executable, "-c", _OPEN, scratch],
                    capture_output=True, text=True, check=True,
                ).stdout.split()
                for _ in range(arguments.repeats)
            ]  # fmt: skip
        seconds = statistics.median(float(result[0]) for result in results)
        memory = statistics.median(int(result[1]) for result in results) / 1024
        lines.append(
            f"| {shards:,} | {int(results[0][2]):,} | {shards * SHARD_BYTES / 1e9:,.0f} GB | "
            f"{1e3 * seconds:.0f} | {memory:.1f} |"
        )
    publish(lines, arguments.report)


if __name__ == "__main__":
    main()
