"""How much a score hangs on the words of an instruction (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

_SAME = ("task", "kind", "measure", "vector", "of", "asymmetric", "documents_of")


def spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean, standard deviation, least and greatest score under a task's instructions.

    `rows` are those of `tasks.measure`; what was measured under one instruction alone is left out.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _SAME), []).append(row["score"])
    return [
        {
            **dict(zip(_SAME, same, strict=True)),
            "instructions": len(scores),
            "mean": mean(scores),
            "sd": stdev(scores),
            "min": min(scores),
            "max": max(scores),
        }
        for same, scores in groups.items()
        if len(scores) > 1
    ]
