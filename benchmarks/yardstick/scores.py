"""What a student's vectors are worth on a task, beside its teacher's.

Shape suffixes: Q queries and as many documents, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from student.encoding import FloatArray, unit

Gains = NDArray[np.float64]

AT = 10
_CHUNK = 512


def ndcg(queries_QD: FloatArray, documents_QD: FloatArray) -> Gains:
    """nDCG@10 of each query whose one relevant document stands at its own place.

    It is 1 / log2(1 + rank) for a rank up to ten, else 0. Rows are compared by cosine; among
    equal documents the right one comes last.
    """
    queries_QD, documents_QD = unit(queries_QD), unit(documents_QD)
    ranks = np.empty(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), _CHUNK):
        places = np.arange(start, min(start + _CHUNK, len(queries_QD)))
        scores = queries_QD[places] @ documents_QD.T
        own = scores[np.arange(len(places)), places]
        ranks[places] = (~(scores < own[:, None])).sum(1)  # what is no number is last
    return np.where(ranks <= AT, 1 / np.log2(1 + ranks), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A score as a share of another one, and what each query has to do with its error."""

    share: float
    parts: Gains

    @property
    def standard_error(self) -> float:
        """Of the share, over the queries."""
        return float(np.sqrt((self.parts**2).sum()))


def share_of(student: Gains, teacher: Gains) -> Share:
    """The student's mean as a share of the teacher's, over the same queries.

    The error is the ratio's, by its linear part: what is left of s - share · t, query by query,
    since a query that is hard for one is hard for the other.
    """
    share = student.mean() / teacher.mean()
    rest = student - share * teacher
    count = len(rest)
    return Share(float(share), rest / teacher.mean() / np.sqrt(count * (count - 1)))


def mean_of(shares: Sequence[Share], names: Sequence[Sequence[Hashable]]) -> Share:
    """The mean over tasks. `names` say for each task what its queries are about.

    Queries of two tasks that are about the same thing (a pair of texts, asked in both directions)
    err together; all others are taken as independent.
    """
    parts: defaultdict[Hashable, float] = defaultdict(float)
    for share, of_task in zip(shares, names, strict=True):
        for name, part in zip(of_task, share.parts, strict=True):
            parts[name] += float(part) / len(shares)
    return Share(float(np.mean([share.share for share in shares])), np.array(list(parts.values())))
