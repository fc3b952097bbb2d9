"""Semantic similarity: pairs of texts that people scored (Spearman's correlation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from student.evaluation import task_files
from student.evaluation.task_spec import Embed, Score, TaskError, TaskSpec

COLUMNS = {"first": "sentence1", "second": "sentence2", "score": "score"}
TEXTS = "texts"
DRAWS = 200
"""Resamples of the bootstrap: the standard error is then itself known to five in a hundred."""


@dataclass(frozen=True, slots=True)
class Sts:
    """Pairs of texts, and how alike people found them (any scale)."""

    spec: TaskSpec
    first: Sequence[str]
    second: Sequence[str]
    scores: NDArray[np.float64]
    instructed: str = TEXTS

    def texts(self) -> Mapping[str, Sequence[str]]:
        """Both texts of every pair."""
        return {TEXTS: [*self.first, *self.second]}

    def measure(self, queries: Embed, documents: Embed, instructions: Sequence[str]) -> list[Score]:
        """Spearman's correlation of the pairs' cosines with their scores.

        The standard error is that of 200 draws of the pairs with replacement.
        """
        from student.encoding import unit

        del documents
        found = []
        for instruction in instructions:
            texts = [instruction + text for text in (*self.first, *self.second)]
            for vector, values in queries(texts, TEXTS).items():
                one, other = np.split(unit(values), 2)
                cosines = np.einsum("nd,nd->n", one, other)
                error = bootstrap(cosines, self.scores)
                score = spearman(cosines, self.scores)
                found.append(Score("spearman", vector, instruction, score, error))
        return found


def load(spec: TaskSpec, base: Path) -> Sts:
    """Read a file with two texts and a score in each row.

    Raises:
        TaskError: it cannot be read, a text is empty, a score no number, or all scores are equal.
    """
    names = task_files.columns_of(spec.columns, COLUMNS, spec.name)
    path = base / spec.path
    first, second, scores = [], [], []
    mend = "; name others in a tasks file: columns = { first = …, second = …, score = … }"
    for place, row in task_files.rows(path, tuple(names.values()), mend):
        first.append(task_files.text(row, names["first"], place))
        second.append(task_files.text(row, names["second"], place))
        scores.append(task_files.number(row, names["score"], place))
    if len(set(scores)) < 2:
        raise TaskError(f"{path}: expected pairs with different scores, found {len(scores)} alike")
    return Sts(spec, first, second, np.array(scores))


def spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's correlation, ties sharing their mean rank; 0 where one side is all ties."""
    from scipy.stats import rankdata

    from student.evaluation.retention import correlation

    return correlation(rankdata(one), rankdata(other))


def bootstrap(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The standard deviation of Spearman's correlation over 200 fixed resamples of the pairs."""
    draw = np.random.default_rng(0)
    samples = (draw.integers(0, len(one), len(one)) for _ in range(DRAWS))
    return float(np.std([spearman(one[chosen], other[chosen]) for chosen in samples], ddof=1))
