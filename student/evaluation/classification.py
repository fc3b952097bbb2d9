"""Classification: a linear probe on vectors that stay as they are (accuracy)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from student.evaluation import task_files
from student.evaluation.task_spec import Embed, Score, TaskError, TaskSpec

if TYPE_CHECKING:
    from student.encoding import FloatArray

COLUMNS = {"text": "text", "label": "label"}
TRAIN = "train"
TEXTS = "texts"
_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Classification:
    """Texts with labels: those that the probe learns from, then those that it is asked about."""

    spec: TaskSpec
    train: Sequence[str]
    train_labels: Sequence[str]
    test: Sequence[str]
    test_labels: Sequence[str]
    instructed: str = TEXTS

    def texts(self) -> Mapping[str, Sequence[str]]:
        """The texts of both files."""
        return {TEXTS: [*self.train, *self.test]}

    def measure(self, queries: Embed, documents: Embed, instructions: Sequence[str]) -> list[Score]:
        """The probe's accuracy on the test texts, with the binomial standard error."""
        del documents
        found = []
        for instruction in instructions:
            texts = [instruction + text for text in (*self.train, *self.test)]
            for vector, values in queries(texts, TEXTS).items():
                score = self._accuracy(values)
                error = math.sqrt(score * (1 - score) / len(self.test))
                found.append(Score("accuracy", vector, instruction, score, error))
        return found

    def _accuracy(self, vectors: FloatArray) -> float:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        from student.encoding import unit

        # A mean square of 1 a column, whatever the width: the penalty then weighs alike.
        rows = unit(vectors) * math.sqrt(vectors.shape[1])
        with warnings.catch_warnings():
            # Where the labels can be told apart the weights grow slowly for ever; the accuracy
            # is settled long before.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(max_iter=_STEPS).fit(
                rows[: len(self.train)], self.train_labels
            )
        return float(probe.score(rows[len(self.train) :], self.test_labels))


def load(spec: TaskSpec, base: Path) -> Classification:
    """Read `train` and `test` (or another split), each with a text and a label in each row.

    Raises:
        TaskError: a file is missing or cannot be read, a text or a label is empty, all labels to
            learn from are the same, or the split is what the probe learns from.
    """
    folder = base / spec.path
    if spec.split == TRAIN:
        raise TaskError(f"task {spec.name!r}: the probe learns from {TRAIN}; give another split")
    names = task_files.columns_of(spec.columns, COLUMNS, spec.name)
    mend = "; name others in a tasks file: columns = { text = …, label = … }"
    parts: list[tuple[list[str], list[str]]] = []
    for split in (TRAIN, spec.split):
        texts, labels = [], []
        path = task_files.beside(folder, split)
        for place, row in task_files.rows(path, tuple(names.values()), mend):
            texts.append(task_files.text(row, names["text"], place))
            labels.append(task_files.name(row, names["label"], place))
        parts.append((texts, labels))
    (train, train_labels), (test, test_labels) = parts
    if len(set(train_labels)) < 2:
        raise TaskError(f"{folder}: expected at least two labels to learn, found {train_labels[0]}")
    return Classification(spec, train, train_labels, test, test_labels)
