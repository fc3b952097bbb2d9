"""How fast are random rows of a cache, beside a raw memory map of the same bytes?

Writes a cache of full width (12,288 in two blocks of random unit vectors) and one raw file with the
same rows into a temporary folder, then reads random batches of 256 rows from both, in turn, in one
process. The pages are warm: this measures the path, not the disk.

    python benchmarks/read.py --rows 32768 --report benchmarks/results/read-HARDWARE-DATE.md
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
import torch
from reports import publish

from teacher_cache.encoders.protocol import Encoded
from teacher_cache.format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    ROWS_PER_SHARD,
    VECTOR_DTYPE,
    Block,
    Manifest,
    ShardFormat,
    checksum,
    identity_of,
)
from teacher_cache.reader import CacheReader
from teacher_cache.writer import Texts, write_record, write_shard

WIDTHS = {"stella-like": 8192, "nv-embed-like": 4096}
BATCH = 256
PER_ROW = "np.memmap, `.tolist()` per row"
"""How the authors' published loader makes tensors of the rows it reads."""


def blocks_of_widths() -> tuple[Block, ...]:
    """Two blocks of the paper's widths, of no teacher."""
    offsets = dict(zip(WIDTHS, (0, WIDTHS["stella-like"]), strict=True))
    return tuple(
        Block(
            teacher=name, offset=offsets[name], width=width, encoder="none", repository="none",
            revision=None, fingerprint="", prompts={}, max_tokens=None, pooling="none",
            dtype="float32", licence="none",
        )
        for name, width in WIDTHS.items()
    )  # fmt: skip


def write_cache(folder: Path, rows: int, shard_format: ShardFormat = "arrow") -> None:
    """A finished cache of random vectors: the real writer, no teacher."""
    blocks = blocks_of_widths()
    ids = [number.to_bytes(16, "big") for number in range(rows)]
    digest = checksum(b"".join(ids))
    identity = identity_of(digest, 0, ROWS_PER_SHARD, blocks, None)
    generator = np.random.default_rng(0)
    records = []
    for index, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
        chosen = ids[start : start + ROWS_PER_SHARD]
        texts = Texts(chosen, [f"text {i}" for i in range(len(chosen))], ["none"] * len(chosen))
        encoded = [
            (
                name,
                Encoded(
                    generator.standard_normal((len(chosen), width), np.float32),
                    np.ones(len(chosen), np.int32),
                ),
            )
            for name, width in WIDTHS.items()
        ]
        records.append(
            write_shard(
                folder,
                index,
                identity=identity,
                texts=texts,
                blocks=encoded,
                shard_format=shard_format,
            )
        )
    manifest = Manifest(
        FORMAT_VERSION, identity, rows, 0, ROWS_PER_SHARD, sum(WIDTHS.values()), VECTOR_DTYPE,
        digest, blocks, None, {}, {}, tuple(records),
    )  # fmt: skip
    write_record(folder / MANIFEST_FILE, manifest)


def write_raw(path: Path, reader: CacheReader) -> np.memmap[tuple[int, int], np.dtype[np.float16]]:
    shape = (len(reader), reader.manifest.width)
    raw = np.memmap(path, np.float16, "w+", shape=shape)
    for start in range(0, len(reader), 1024):
        raw[start : start + 1024] = reader.vectors(range(start, min(start + 1024, len(reader))))
    raw.flush()
    return np.memmap(path, np.float16, "r", shape=shape)


def measure(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each arm, the arms taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats + 3):
        for name, arm in arms.items():
            if name == PER_ROW and len(seconds[name]) > 6:
                continue  # half a second each
            began = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[3:] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * ROWS_PER_SHARD)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch, "cache")
        write_cache(cache, arguments.rows)
        reader = CacheReader(cache)
        raw = write_raw(Path(scratch, "raw.f16"), reader)

        def rows() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return generator.integers(0, arguments.rows, BATCH)

        assert np.array_equal(reader.vectors(range(100)), raw[:100])
        seconds = measure(
            {
                "np.memmap, fancy index": lambda: raw[rows()],
                "CacheReader.vectors": lambda: reader.vectors(rows()),
                "CacheReader.vectors, one teacher": lambda: reader.vectors(
                    rows(), ["nv-embed-like"]
                ),
                PER_ROW: lambda: [torch.tensor(raw[row].tolist()) for row in rows()],
                "CacheReader.texts": lambda: reader.texts(rows()),
            },
            arguments.repeats,
        )
    base = statistics.median(seconds["np.memmap, fancy index"])
    lines = [
        "# How fast are random rows of a cache, beside a raw memory map of the same bytes?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}). "
        f"Python {platform.python_version()}, numpy {np.__version__}.",
        f"Command: `python benchmarks/read.py --rows {arguments.rows} "
        f"--repeats {arguments.repeats}`",
        "",
        f"Random batches of {BATCH} rows of {arguments.rows:,}, width {sum(WIDTHS.values()):,}, "
        "float16, pages warm; the arms take turns.",
        "",
        "| arm | median ms | fastest ms | rows/s | speed against np.memmap |",
        "|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f"| {name} | {1e3 * median:.2f} | {1e3 * min(times):.2f} | {BATCH / median:,.0f} | "
            f"{base / median:.3g} |"
        )
    publish(lines, arguments.report)


if __name__ == "__main__":
    main()
