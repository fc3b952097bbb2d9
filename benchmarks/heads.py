"""What does a narrow head cost, however good the student is?

Gives the teacher's own vectors, in place of a student's, through linear heads of several widths and
asks them the yardstick's tasks (`quality.py`). A student whose FC1 gave exactly its teacher's
vectors would keep this much; what a real one keeps less is the student's doing. The heads are the
principal directions of the cached training vectors, or fitted to those vectors as in a stage with
closed_form = "fitted"; and, to see how much better texts could make them, fitted to the vectors of
the tasks' own texts, which no user has.

    python benchmarks/heads.py --corpora DIR --report benchmarks/results/heads-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from quality import FULL, QUICK
from reports import publish
from yardstick.arms import PCA_ROWS, versions_used
from yardstick.caches import TEACHER, Material, TeacherVectors, prepare
from yardstick.measure import FULL as WHOLE
from yardstick.measure import measure, principal
from yardstick.ours import Encode
from yardstick.shortlist import LENGTH, shortlist
from yardstick.summary import row

from cli.console import phase, quiet_libraries
from student.encoding import FloatArray
from student.fitting import fitted

WIDTHS = (256, 192, 128, 96, 64, 32)
FOCUS = 0.1
"""The focus on near texts of recipes/default.toml."""

Heads = Mapping[int, FloatArray]
"""Maps [T, D] by their width."""


def heads_of(vectors_NT: FloatArray, focus: float | None) -> Heads:
    """Heads fitted to these vectors, as a stage fits them."""
    return {
        width: fitted(vectors_NT, width, focus, seed=0).T.astype(np.float32) for width in WIDTHS
    }


def through(teacher: TeacherVectors, held_out: TeacherVectors, heads: Heads) -> Encode:
    """The teacher's vectors of texts that either cache holds, whole and through each head."""

    def vectors(texts: Sequence[str]) -> dict[str, FloatArray]:
        whole = (teacher if texts[0] in teacher else held_out).of(texts)
        return {WHOLE: whole} | {str(width): whole @ head for width, head in heads.items()}

    return vectors


def ways(material: Material, which: str) -> Iterator[tuple[str, Heads]]:
    """The heads, way by way, and what the way is called."""
    reader = material.reader
    vectors = reader.vectors(reader.train_rows).astype(np.float32)
    yield f"principal directions of {PCA_ROWS:,} rows", principal(vectors[:PCA_ROWS], WIDTHS)
    yield "fitted, all pairs alike (Eq. 2)", heads_of(vectors, None)
    yield f"fitted, focus {FOCUS} on near texts", heads_of(vectors, FOCUS)
    texts = dict.fromkeys(text for task in material.tasks(which) for text in task.texts)
    seen = material.teacher.of([*texts])
    yield f"fitted to the tasks' own {len(seen):,} texts, focus {FOCUS}", heads_of(seen, FOCUS)


def lines_of(way: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """A way's rows of the table."""
    for width in map(str, WIDTHS):
        of_full, listed = figures["of fc1"][width], figures["shortlist"][width]
        kept = figures["retention"]["all"][width]
        shares = [
            of_full["mean"], of_full["worst"], listed["mean"], listed["worst"], kept["order"],
            kept["neighbours"],
        ]  # fmt: skip
        error = figures["mean"][width]["standard_error"]
        cells = [f"{100 * share:.1f}" for share in shares]
        cells[0] += f" ({100 * error:.1f})"
        yield row(way, width, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, default=Path(".quality"), help="quality.py's folder")
    parser.add_argument("--quick", action="store_true", help="fewer texts and queries")
    parser.add_argument("--dev", action="store_true", help="ask the tasks to choose by")
    parser.add_argument("--report", type=Path, help="file to write the report to")
    options = parser.parse_args()
    quiet_libraries()
    started = time.monotonic()
    size = QUICK if options.quick else FULL
    material = prepare(
        options.work, options.corpora, texts=size.texts, queries=size.queries,
        dev_queries=size.dev_queries, phase=phase,
    )  # fmt: skip
    which = "dev" if options.dev else "test"
    held_out = TeacherVectors(material.reader)
    table = []
    for way, heads in ways(material, which):
        print(way, file=sys.stderr)
        encode = through(material.teacher, held_out, heads)
        figures = measure(encode, material, which)
        table += lines_of(way, {**figures, "shortlist": shortlist(encode, material, which)})
    versions = ", ".join(f"{name} {version}" for name, version in versions_used().items())
    rows = len(material.reader.train_rows)
    titles = [
        "heads", "width", "nDCG@10 of the whole, mean", "worst task", f"recall@{LENGTH}, mean",
        "worst task", "held-out order", "neighbours",
    ]  # fmt: skip
    lines = [
        "# What does a narrow head cost, however good the student is?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}). {date.today():%Y-%m-%d}. "
        f"Versions: {versions}. {time.monotonic() - started:.0f} s.",
        f"Command: `python benchmarks/heads.py {shlex.join(sys.argv[1:])}`",
        "",
        f"The vectors of {TEACHER['name']} itself, through linear heads from {rows:,} cached "
        f"vectors; the `{which}` tasks of benchmarks/quality.py, as shares of what the whole "
        "vectors reach, in % (in brackets the standard error over queries). Order and neighbours "
        "are of held-out rows.",
        "",
        row(*titles),
        row(*["---"] * len(titles)),
        *table,
    ]
    publish(lines, options.report)


if __name__ == "__main__":
    main()
