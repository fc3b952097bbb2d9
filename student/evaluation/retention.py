"""How near a student's vectors are to a teacher's: pure functions of two arrays.

Three figures: the mean cosine (where a row is to point where its target does), the agreement in the
order of similarities, and the share of neighbours kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from student.encoding import FloatArray, unit

NEIGHBOURS = 10
ORDER_ROWS = 2000
"""Rows whose pairs are ranked: two million pairs, which Spearman's statistic sorts in a second."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How near a student's vectors are to a teacher's.

    `cosine` is the mean cosine of a row with its target, None where the student does not speak the
    teacher's space (only FC1 learns to). `order` is
    Spearman's correlation of all pairwise similarities. `neighbours` is the share of each row's
    ten nearest teacher neighbours, among the same rows, that are the student's too.
    """

    cosine: float | None
    order: float
    neighbours: float


def retention(student: FloatArray, teacher: FloatArray, *, same_space: bool) -> Retention:
    """Compare two sets of vectors [n, D] and [n, T] of the same texts, row by row.

    `same_space` says that a row is to point where its target does, so that a cosine means
    something; equal widths alone do not make it so.

    Raises:
        ValueError: the numbers of rows differ, or there are fewer than three.
    """
    if len(student) != len(teacher) or len(student) < 3:
        raise ValueError(f"expected as many rows, at least 3: {len(student)}, {len(teacher)}")
    student, teacher = unit(student), unit(teacher)
    cosine = float(np.einsum("nd,nd->n", student, teacher).mean()) if same_space else None
    return Retention(cosine, order_agreement(student, teacher), _neighbours(student, teacher))


def order_agreement(student: FloatArray, teacher: FloatArray) -> float:
    """Spearman's correlation of the pairwise similarities of two sets of unit rows."""
    from scipy.stats import spearmanr

    rows = min(len(student), ORDER_ROWS)
    pairs = np.triu_indices(rows, 1)
    similarities = [(part[:rows] @ part[:rows].T)[pairs] for part in (student, teacher)]
    return float(spearmanr(*similarities).statistic)


def _neighbours(student: FloatArray, teacher: FloatArray) -> float:
    count = min(NEIGHBOURS, len(student) - 1)
    kept = [
        len(np.intersect1d(mine, theirs))
        for mine, theirs in zip(nearest(student, count), nearest(teacher, count), strict=True)
    ]
    return float(np.mean(kept)) / count


def nearest(vectors: FloatArray, count: int) -> NDArray[np.int64]:
    """The `count` nearest other rows of each unit row, by inner product [n, count]."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    _, found = index.search(np.ascontiguousarray(vectors), count + 1)
    # A duplicate may come before the row itself: drop the row where it stands, else the last.
    own = found == np.arange(len(vectors))[:, None]
    own[~own.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~own].reshape(len(vectors), count)
    return others
