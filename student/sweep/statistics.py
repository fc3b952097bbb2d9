"""Whether an arm differs from the baseline, by the same seeds: paired t-tests, corrected by Holm.

Pure functions of numbers. A seed decides the order of rows and the start of new heads, so that the
runs of one seed share what chance gave them: the differences within seeds vary less than the runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SIGNIFICANT = 0.05

_ROUNDING = 1e-9
"""Of a difference: figures are shares and correlations in float64, whose differences are exact to
about 1e-16; the least step of a figure, a row of 20,000, is 5e-5."""


def mean(values: Sequence[float]) -> float:
    """The mean of one value or more."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample's standard deviation (n - 1); None for a single value, which has none."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's t-test that differences come from a mean of 0.

    1 where all are 0: two arms that are one. None for fewer than two, and where all are equal but
    for rounding: there is no spread to test against. Figures that count rows come in steps, and a
    few seeds often agree by chance: with two, up to one in ten arms that do not differ at all.
    """
    spread = deviation(differences)
    if spread is None:
        return None
    middle = mean(differences)
    if spread <= _ROUNDING * abs(middle):
        return 1.0 if middle == 0 else None
    from scipy.special import stdtr

    t = middle / (spread / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values of a family of tests, corrected so that 5 % bound even one false alarm (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, …; none comes out
    smaller than one before it, or above 1.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    ranked = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - place) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def compare(
    values: Mapping[str, Mapping[int, float]], baseline: str
) -> dict[str, dict[str, object]]:
    """The figures of every arm for one quantity, from its value by arm and seed.

    For each arm: `mean`, `sd` (None for one seed), `values` in the order of the seeds, and beside
    the baseline over the seeds that both have: `difference` (of the means), `p` (paired t-test,
    Holm over the other arms; None where it says nothing) and `significant` (p < 0.05).
    """
    own = values.get(baseline, {})
    differences = {
        arm: [found[seed] - own[seed] for seed in found if seed in own]
        for arm, found in values.items()
        if arm != baseline
    }
    tested = {arm: paired_p(each) for arm, each in differences.items()}
    p_values = holm({arm: p for arm, p in tested.items() if p is not None})
    figures: dict[str, dict[str, object]] = {}
    for arm, found in values.items():
        seen = list(found.values())
        p = p_values.get(arm)
        figures[arm] = {
            "mean": mean(seen),
            "sd": deviation(seen),
            "values": seen,
            "difference": mean(differences[arm]) if differences.get(arm) else None,
            "p": p,
            "significant": p is not None and p < SIGNIFICANT,
        }
    return figures
