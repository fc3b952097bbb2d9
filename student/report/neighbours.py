"""Two ways to see the same texts: how pairs of them compare, and which lie nearest to which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from student.encoding import FloatArray, unit
from student.report.records import Density, Neighbour, Sample

BINS = 44
NEAREST = 5
SAMPLES = 6
_ENDS = (0.0005, 0.9995)
"""Quantiles between which a density is drawn: a few pairs far out would shrink all others."""


def density(teacher: str, vector: str, theirs: FloatArray, own: FloatArray) -> Density:
    """Count all pairs of rows by their cosine under a teacher [n, T] and the student [n, D].

    What lies beyond the outermost of 10,000 pairs is counted at the rim. `spearman` is of all, 0
    where one side finds all pairs alike.

    Raises:
        ValueError: fewer than three rows: there is no order of pairs.
    """
    from scipy.stats import spearmanr

    if len(theirs) != len(own) or len(own) < 3:
        raise ValueError(f"expected as many rows, at least 3: {len(theirs)}, {len(own)}")
    pairs = np.triu_indices(len(own), 1)
    first, second = (
        # In float64, or the largest may lie beyond its own range by a rounding.
        (part @ part.T)[pairs].astype(np.float64)
        for part in (unit(theirs), unit(own))
    )
    ranges = [_range(first), _range(second)]
    across, up = (np.clip(c, *r) for c, r in zip((first, second), ranges, strict=True))
    counts, _, _ = np.histogram2d(across, up, bins=BINS, range=ranges)
    varied = np.ptp(first) > 0 and np.ptp(second) > 0
    return Density(
        teacher=teacher,
        vector=vector,
        counts=counts.astype(int).tolist(),
        teacher_range=ranges[0],
        student_range=ranges[1],
        spearman=float(spearmanr(first, second).statistic) if varied else 0.0,
        pairs=len(first),
    )


def _range(cosines: NDArray[np.float64]) -> tuple[float, float]:
    low, high = (float(end) for end in np.quantile(cosines, _ENDS))
    return low, max(high, low + 1e-3)


def samples(
    theirs: FloatArray, own: FloatArray, texts: Sequence[str], rows: Sequence[int]
) -> list[Sample]:
    """A few texts with their nearest others, for the teachers [n, T] and the student [n, D].

    The texts are evenly spaced over the rows given, chosen by nothing else. `rows` are the numbers
    by which the cache knows them.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int))
    sides = [_nearest(unit(part), chosen) for part in (theirs, own)]

    def listed(side: int, place: int) -> list[Neighbour]:
        (found, cosines), (others, _) = sides[side], sides[1 - side]
        return [
            Neighbour(
                row=rows[index],
                text=texts[index],
                cosine=round(float(cosine), 4),
                agrees=index in others[place],
            )
            for index, cosine in zip(found[place].tolist(), cosines[place], strict=True)
        ]

    return [
        Sample(
            row=rows[index],
            text=texts[index],
            teacher=listed(0, place),
            student=listed(1, place),
        )
        for place, index in enumerate(chosen.tolist())
    ]


def _nearest(
    vectors: FloatArray, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], FloatArray]:
    """The nearest other rows of each chosen one, and their cosines; of equal ones the first."""
    similar = vectors[chosen] @ vectors.T
    similar[np.arange(len(chosen)), chosen] = -np.inf
    count = min(NEAREST, len(vectors) - 1)
    found = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    return found, np.take_along_axis(similar, found, axis=1)
