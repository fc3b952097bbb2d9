"""How fast is a shard written, beside a raw file of the same bytes?

Four arms in turn, each ending when its bytes are durable (fsync): a raw file; the same bytes
through the crash-safe commit (temporary name, checksum, rename, folder synced); a whole shard from
a teacher's float32 vectors (norms, normalised concatenation, float16, texts, ids, record); and the
concatenation of the last one alone. In a build the arithmetic and the writing of a shard run behind
the encoding of the next.

    python benchmarks/write.py --report benchmarks/results/write-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from reports import publish

from teacher_cache.encoders.protocol import Encoded
from teacher_cache.files import commit_bytes
from teacher_cache.format import ROWS_PER_SHARD
from teacher_cache.writer import Texts, concatenate, write_shard

WIDTHS = (8192, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS_PER_SHARD)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="a folder on the disk that counts")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    rows = arguments.rows
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal((rows, width), np.float32) for width in WIDTHS]
    tokens = np.ones(rows, np.int32)
    blocks = [(f"teacher-{i}", Encoded(block, tokens)) for i, block in enumerate(vectors)]
    norms = np.stack([np.linalg.norm(block, axis=1) for block in vectors], axis=1)
    ids = [number.to_bytes(16, "big") for number in range(rows)]
    texts = Texts(ids, [f"text {number}" * 120 for number in range(rows)], ["none"] * rows)
    serial = count()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        write_shard(folder, next(serial), identity="none", texts=texts, blocks=blocks)
        (whole,) = (folder / "shards").glob("*.arrow")
        data = whole.read_bytes()

        def raw() -> None:
            with (folder / f"raw-{next(serial)}").open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())

        def commit() -> None:
            commit_bytes(folder / f"commit-{next(serial)}", data)

        def shard() -> None:
            write_shard(folder, next(serial), identity="none", texts=texts, blocks=blocks)

        def arithmetic() -> None:
            concatenate(vectors, norms)

        arms = {
            "raw file, fsync": raw,
            "the same bytes, committed": commit,
            "`write_shard` from float32": shard,
            "its concatenation alone": arithmetic,
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(arguments.repeats + 1):
            for name, arm in arms.items():
                began = time.perf_counter()
                arm()
                seconds[name].append(time.perf_counter() - began)
                for path in folder.rglob("*-*"):
                    path.unlink()
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    base = medians["raw file, fsync"]
    lines = [
        "# How fast is a shard written, beside a raw file of the same bytes?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), load average "
        f"{os.getloadavg()[0]:.1f} at the end. Python {platform.python_version()}, numpy "
        f"{np.__version__}.",
        f"Command: `python benchmarks/write.py --rows {rows} --repeats {arguments.repeats}`",
        "",
        f"{rows:,} rows of {sum(WIDTHS):,}, {len(data) / 1e6:,.0f} MB; the arms take turns.",
        "",
        "| arm | median ms | fastest ms | MB/s | speed against raw |",
        "|---|---|---|---|---|",
    ]
    for name, median in medians.items():
        lines.append(
            f"| {name} | {1e3 * median:.0f} | {1e3 * min(seconds[name][1:]):.0f} | "
            f"{len(data) / median / 1e6:,.0f} | {base / median:.2f} |"
        )
    publish(lines, arguments.report)


if __name__ == "__main__":
    main()
