"""How near a student's vectors are to a teacher's: pure functions of two arrays.

Where a row points to, the order of similarities, and the neighbours that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from student.encoding import FloatArray, unit
from student.stages import LEAST_TEXTS

AT = (1, 10)
"""The k of recall@k."""

ORDER_ROWS = 2000
"""Rows whose pairs are ranked: two million pairs, which are sorted in a second."""

_COMPARISONS = 1_000_000
"""Pairs of pairs that `pair_order` looks at: its standard error is then 0.0005."""

Retention = TypedDict(
    "Retention",
    {
        "cosine": float | None,
        "spearman": float,
        "pair_order": float,
        "recall@1": float,
        "recall@10": float,
    },
)
"""How near a student's vectors are to a teacher's.

`cosine`: the mean cosine of a row with its target, None where the student does not speak the
teacher's space (only FC1 learns to). `spearman`: the correlation of all pairwise similarities.
`pair_order`: the share of pairs of text pairs that both put in the same order, by their similarity;
0.5 by chance. `recall@k`: the share of each row's k nearest teacher neighbours, among the same
rows, that are among the student's k nearest; k / (rows - 1) by chance.
"""

Recall = TypedDict("Recall", {"recall@1": float, "recall@10": float})


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of one set of vectors is compared with another's; made once, however many there are.

    `rows` are of unit length [n, D]. `similarities` are those of all pairs of the first
    ORDER_ROWS rows, `ranks` their ranks (ties share the mean). `nearest` [n, 10] numbers each row's
    nearest others.
    """

    rows: FloatArray
    similarities: FloatArray
    ranks: NDArray[np.float64]
    nearest: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: FloatArray) -> Self:
        """Measure vectors [n, D].

        Raises:
            ValueError: fewer than three rows.
        """
        from scipy.stats import rankdata

        if len(vectors) < LEAST_TEXTS:
            raise ValueError(
                f"expected at least {LEAST_TEXTS} rows to compare, found {len(vectors)}"
            )
        rows = unit(vectors)
        similarities = pairwise(rows)
        return cls(rows, similarities, rankdata(similarities), nearest(rows, rows, max(AT)))


def compare(student: Geometry, teacher: Geometry, *, same_space: bool) -> Retention:
    """Compare two sets of vectors of the same texts, row by row.

    `same_space` says that a row is to point where its target does, so that a cosine means
    something; equal widths alone do not make it so.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if len(student.rows) != len(teacher.rows):
        raise ValueError(f"expected as many rows: {len(student.rows)}, {len(teacher.rows)}")
    cosine = None
    if same_space:
        cosine = float(np.einsum("nd,nd->n", student.rows, teacher.rows).mean())
    return {
        "cosine": cosine,
        "spearman": correlation(student.ranks, teacher.ranks),
        "pair_order": pair_order(student.similarities, teacher.similarities),
        **recall(student.nearest, teacher.nearest),
    }


def correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's correlation of two arrays, Spearman's where they are ranks; 0 where one is flat."""
    centred = [values - values.mean() for values in (one, other)]
    lengths = np.prod([np.linalg.norm(values) for values in centred])
    return float(centred[0] @ centred[1] / lengths) if lengths else 0.0


def order_agreement(student: FloatArray, teacher: FloatArray) -> float:
    """Spearman's correlation of the pairwise similarities of two sets of unit rows."""
    from scipy.stats import spearmanr

    return float(spearmanr(pairwise(student), pairwise(teacher)).statistic)


def pairwise(rows: FloatArray) -> FloatArray:
    """The similarities of all pairs of the first ORDER_ROWS unit rows, each pair once [P]."""
    rows = rows[:ORDER_ROWS]
    upper: FloatArray = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return upper


def pair_order(student: FloatArray, teacher: FloatArray) -> float:
    """The share of comparisons of two entries that come out the same way in both arrays [P].

    A million comparisons are drawn, the same ones for arrays of the same length. One that is a tie
    on either side does not count; 0.5 where all are.
    """
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, len(teacher), (2, _COMPARISONS))
    signs = np.sign(student[one] - student[other]) * np.sign(teacher[one] - teacher[other])
    decided = np.count_nonzero(signs)
    return float((signs > 0).sum() / decided) if decided else 0.5


def recall(found: NDArray[np.int64], right: NDArray[np.int64]) -> Recall:
    """The share of the first k columns of `right` that are among the first k of `found`."""
    of_ten = found[:, :, None] == right[:, None, :]
    at_1, at_10 = (float(of_ten[:, :k, :k].any(1).mean()) for k in AT)
    return {"recall@1": at_1, "recall@10": at_10}


def nearest(queries: FloatArray, documents: FloatArray, count: int) -> NDArray[np.int64]:
    """The `count` nearest documents of each query, itself left out [n, count].

    Unit rows, compared by inner product; query i is document i. There are never more than n - 1.
    """
    import faiss

    count = min(count, len(documents) - 1)
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.ascontiguousarray(documents))
    _, found = index.search(np.ascontiguousarray(queries), count + 1)
    # A duplicate may come before the row itself: drop the row where it stands, else the last.
    own = found == np.arange(len(queries))[:, None]
    own[~own.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~own].reshape(len(queries), count)
    return others
