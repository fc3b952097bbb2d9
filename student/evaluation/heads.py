"""Which vectors of a run are measured: heads, and first columns of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from student.spec import StudentError
from student.stages import FULL_HEAD, head_of, width_of


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
    """The heads that a comma-separated option names.

    Raises:
        StudentError: the run has not trained one.
        StageError: one is misspelt, or not as wide as asked.
    """
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        if entry not in trained and head_of(entry)[0] not in trained:
            raise StudentError(
                f"--heads: the run has not trained {entry!r}; it has {', '.join(trained)}"
            )
        width_of(entry, widths)
    return entries
