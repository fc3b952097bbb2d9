"""Which vectors of a run are measured: heads, and first columns of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from student.spec import POOLED
from student.stages import FULL_HEAD
from student.trained import Heads


def to_measure(trained: Sequence[str], widths: Mapping[str, int]) -> list[str]:
    """What is measured unless something else is asked for, of a run's `trained_heads`.

    All of them, and FC1 cut to the width of each reduced head, trained or not: the head stands
    beside the prefix that is as wide.
    """
    found = list(trained)
    if FULL_HEAD in trained:
        cuts = [width for head, width in widths.items() if head != FULL_HEAD]
        found += [f"{FULL_HEAD}[:{width}]" for width in cuts if width < widths[FULL_HEAD]]
    return list(dict.fromkeys(found))


def asked(text: str, trained: Sequence[str], widths: Mapping[str, int]) -> list[str]:
    """The vectors that a comma-separated option names, as `Heads.choose` understands them.

    `pooled` may be named; it is measured in any case, and so is not in the answer.

    Raises:
        StudentError: the run has not trained one.
        StageError: one is misspelt, or not as wide as asked.
    """
    heads = Heads(widths, tuple(trained))
    entries = [entry.strip() for entry in text.split(",")]
    names = [heads.choose(entry) for entry in entries]
    return [name for name in dict.fromkeys(names) if name != POOLED]
