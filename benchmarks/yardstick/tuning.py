"""Each arm's own learning rate: tried on a short budget, on the tasks of `dev`, with one seed."""

from __future__ import annotations

from collections.abc import Mapping

LADDER = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Rates that may be tried: the largest of an arm's stages, others in proportion."""

FIRST = LADDER[2:5]
"""Those that every arm begins with, besides the one that its recipe or its documentation names."""


def next_rates(scores: Mapping[float, float], own: float) -> tuple[float, ...]:
    """What to try next, given the scores so far: nothing once the best has both neighbours."""
    if not scores:
        return tuple(sorted({*FIRST, own}))
    best = best_rate(scores)
    below = [rate for rate in LADDER if rate < best]
    above = [rate for rate in LADDER if rate > best]
    return tuple(rate for rate in (*below[-1:], *above[:1]) if rate not in scores)


def best_rate(scores: Mapping[float, float]) -> float:
    """The rate with the highest score, the lower one of two."""
    return max(sorted(scores), key=lambda rate: scores[rate])
