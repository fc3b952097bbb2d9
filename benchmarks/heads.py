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

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from quality import FULL, QUICK, parser_of
from reports import publish
from yardstick.arms import ARMS, PCA_ROWS, recipe_of
from yardstick.caches import TEACHER, Material, TeacherVectors
from yardstick.measure import FULL as WHOLE
from yardstick.measure import measure, principal
from yardstick.ours import Encode
from yardstick.shortlist import LENGTH, shortlist
from yardstick.summary import hardware, row
from yardstick.work import remembering

from cli.console import quiet_libraries
from student.encoding import FloatArray
from student.fitting import fitted

WIDTHS = (256, 192, 128, 96, 64, 32)

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
    # As the default recipe fits them.
    focus = recipe_of(ARMS["default"], FULL.students[0]).stage(3).heads["fc2"].focus
    yield f"fitted, focus {focus} on near texts", heads_of(vectors, focus)
    texts = dict.fromkeys(text for task in material.tasks(which) for text in task.texts)
    seen = material.teacher.of([*texts])
    yield f"fitted to the tasks' own {len(seen):,} texts, focus {focus}", heads_of(seen, focus)


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
    options = parser_of(__doc__).parse_args()
    quiet_libraries()
    started = time.monotonic()
    material = (QUICK if options.quick else FULL).material(options)
    which = "dev" if options.dev else "test"
    held_out = TeacherVectors(material.reader)
    table = []
    for way, heads in ways(material, which):
        print(way, file=sys.stderr)
        encode = remembering(through(material.teacher, held_out, heads))
        figures = measure(encode, material, which)
        table += lines_of(way, {**figures, "shortlist": shortlist(encode, material, which)})
    rows = len(material.reader.train_rows)
    titles = [
        "heads", "width", "nDCG@10 of the whole, mean", "worst task", f"recall@{LENGTH}, mean",
        "worst task", "held-out order", "neighbours",
    ]  # fmt: skip
    lines = [
        "# What does a narrow head cost, however good the student is?",
        "",
        hardware(f"{time.monotonic() - started:.0f} s"),
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
