"""Does one index for all teachers find what an index for each teacher would?

Takes a finished cache of any size that fits into memory. For each teacher and for all together it
finds the ten nearest rows of some random ones exactly, then counts how many of them are among the
candidates of the common index (`jasper-cache search`), and among those of an index of the teacher's
own vectors, when 1, 2, 4 … lists are looked into. The second number is what sharing costs.

    python benchmarks/search.py --cache .demo/cache --report benchmarks/results/search-<hardware>-…
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from reports import publish

from teacher_cache.build import silent
from teacher_cache.index_build import Settings, build_index, cost
from teacher_cache.reader import CacheReader
from teacher_cache.search import Nearest, View, search, views
from teacher_cache.search_index import INDEX_FILE, candidates

K = 10


def of_its_own(vectors: NDArray[np.float32], lists: int) -> faiss.Index:
    """An index of one view's vectors alone, as they are."""
    width = vectors.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.train(vectors)
    index.add(vectors)
    return index


def recall(
    index: faiss.Index, probes: list[NDArray[np.float32]], truth: list[Nearest], lists: int
) -> float:
    """The share of the true neighbours among the candidates."""
    found = [candidates(index, probe, K, lists) for probe in probes]
    return float(np.mean([np.isin(t.rows, f).mean() for t, f in zip(truth, found, strict=True)]))


def rows_of(
    reader: CacheReader, view: View, settings: Settings, folder: Path, rows: Sequence[int]
) -> Iterator[str]:
    """The recall of both indexes in one view, by the number of lists."""
    vectors = reader.vectors(range(len(reader)))
    teachers = len(reader.teachers)
    truth = [search(reader, vectors[row], [view], K, own=row)[view.name] for row in rows]
    queries = [Nearest(vectors[row], view, K, teachers=teachers) for row in rows]
    common = faiss.read_index(str(folder / INDEX_FILE))
    part = view.part(vectors).astype(np.float32)
    own = of_its_own(part, settings.lists)
    lists = 1
    while lists <= settings.lists:
        shared = recall(common, [q.probe(vectors.shape[1]) for q in queries], truth, lists)
        alone = recall(own, [part[row] for row in rows], truth, lists)
        yield f"| {view.name} | {lists} of {settings.lists} | {shared:.3f} | {alone:.3f} |"
        lists *= 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cache", type=Path, required=True)
    arguments.add_argument("--queries", type=int, default=200)
    arguments.add_argument("--width", type=int, default=Settings.of(1).width)
    arguments.add_argument("--report", type=Path)
    given = arguments.parse_args()
    reader = CacheReader(given.cache)
    base = Settings.of(len(reader))
    settings = Settings(base.lists, base.sample, width=given.width)
    rows = np.random.default_rng(1).choice(len(reader), given.queries, replace=False).tolist()
    lines = [
        f"{len(reader):,} rows × {reader.manifest.width}, {given.queries} queries, blocks "
        f"projected on at most {given.width} columns; the common index takes "
        f"{cost(reader, settings).disk / 1e6:.1f} MB",
        "",
        f"| view | lists looked into | recall@{K}, common index | recall@{K}, index of its own |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        build_index(reader, Path(folder), settings, phase=silent)
        lines[0] += f" and {time.perf_counter() - began:.1f} s to make"
        for view in views(reader):
            lines += rows_of(reader, view, settings, Path(folder), rows)
    publish(lines, given.report)


if __name__ == "__main__":
    main()
