"""Retrieval: documents found by queries, in the layout of BEIR (nDCG@10 and recall@100).

Both figures are those of trec_eval and pytrec_eval: a document's gain is its relevance as it
stands, equally similar documents are ranked by their ids from last to first, and a query without
a relevant document counts as 0. Shape suffixes: Q queries, K places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from student.evaluation import task_files
from student.evaluation.task_spec import Embed, Score, TaskError, TaskSpec

if TYPE_CHECKING:
    from student.encoding import FloatArray

QUERIES = "queries"
DOCUMENTS = "documents"
NDCG_AT = 10
RECALL_AT = 100
_CHUNK = 8192
"""Documents whose vectors are held at a time: 400 MB at 12,288 wide."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, documents, and how relevant (1, 2 …) which document is for which query.

    `relevant` maps the number of a query to its documents' relevance by number. `tie_order` is the
    documents' place among equally similar ones.
    """

    spec: TaskSpec
    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[Mapping[int, int]]
    tie_order: NDArray[np.int64]
    instructed: str = QUERIES

    def texts(self) -> Mapping[str, Sequence[str]]:
        """The queries and the documents that have a text."""
        return {QUERIES: self.queries, DOCUMENTS: [text for text in self.documents if text]}

    def measure(self, queries: Embed, documents: Embed, instructions: Sequence[str]) -> list[Score]:
        """nDCG@10 and recall@100, means over the queries with their standard errors."""
        from student.encoding import unit

        best = {
            (vector, instruction): _Best(unit(values), self.tie_order)
            for instruction in instructions
            for vector, values in queries(
                [instruction + text for text in self.queries], QUERIES
            ).items()
        }
        numbers = np.array([i for i, text in enumerate(self.documents) if text])
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK]
            vectors = documents([self.documents[i] for i in chunk], DOCUMENTS)
            units = {vector: unit(values) for vector, values in vectors.items()}
            for (vector, _), found in best.items():
                found.add(units[vector], chunk)
        return [
            score
            for (vector, instruction), found in best.items()
            for score in self._scores(vector, instruction, found.documents_QK)
        ]

    def _scores(self, vector: str, instruction: str, found_QK: NDArray[np.int64]) -> list[Score]:
        figures = {f"ndcg@{NDCG_AT}": ndcg, f"recall@{RECALL_AT}": recall}
        scores = []
        for name, figure in figures.items():
            each_Q = np.array(
                [figure(row, own) for row, own in zip(found_QK, self.relevant, strict=True)]
            )
            error = each_Q.std(ddof=1) / np.sqrt(len(each_Q)) if len(each_Q) > 1 else 0.0
            scores.append(Score(name, vector, instruction, float(each_Q.mean()), float(error)))
        return scores


class _Best:
    """The nearest documents of each query so far, best first."""

    def __init__(self, queries: FloatArray, tie_order: NDArray[np.int64]) -> None:
        self.queries = queries
        self.tie_order = tie_order
        self.scores_QK = np.empty((len(queries), 0), np.float32)
        self.documents_QK = np.empty((len(queries), 0), np.int64)

    def add(self, vectors: FloatArray, numbers: NDArray[np.int64]) -> None:
        import faiss

        scores, places = faiss.knn(
            self.queries, vectors, min(RECALL_AT, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores_QK = np.concatenate([self.scores_QK, scores], axis=1)
        documents_QK = np.concatenate([self.documents_QK, numbers[places]], axis=1)
        order = np.lexsort((self.tie_order[documents_QK], -scores_QK), axis=1)[:, :RECALL_AT]
        self.scores_QK = np.take_along_axis(scores_QK, order, axis=1)
        self.documents_QK = np.take_along_axis(documents_QK, order, axis=1)


def ndcg(found: NDArray[np.int64], relevant: Mapping[int, int]) -> float:
    """DCG@10 over that of the best order: Σ relevance / log₂(place + 1), places from 1."""
    gains = [max(0, relevant.get(int(number), 0)) for number in found[:NDCG_AT]]
    ideal = sorted((gain for gain in relevant.values() if gain > 0), reverse=True)[:NDCG_AT]
    return _dcg(gains) / _dcg(ideal) if ideal else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


def recall(found: NDArray[np.int64], relevant: Mapping[int, int]) -> float:
    """The share of the relevant documents that are among the first 100."""
    right = {number for number, gain in relevant.items() if gain > 0}
    return len(right.intersection(found[:RECALL_AT].tolist())) / len(right) if right else 0.0


def load(spec: TaskSpec, base: Path) -> Retrieval:
    """Read `corpus`, `queries` and `qrels/SPLIT` of a folder.

    Only queries with a judgement in the split are asked. A document's text is its title and its
    text; one that has neither is never found.

    Raises:
        TaskError: a file is missing or cannot be read, an id stands twice, or a judgement names a
            query or a document that is not there.
    """
    folder = base / spec.path
    task_files.columns_of(spec.columns, {}, spec.name)
    documents = _texts(task_files.beside(folder, "corpus"), titled=True)
    queries = _texts(task_files.beside(folder, "queries"), titled=False)
    numbers = {id_: number for number, id_ in enumerate(documents)}
    path = task_files.beside(folder / "qrels", spec.split)
    judged: dict[str, dict[int, int]] = {}
    columns = ("query-id", "corpus-id", "score")
    for place, row in task_files.rows(path, columns):
        query, document = (task_files.name(row, column, place) for column in columns[:2])
        for id_, known, what in ((query, queries, "queries"), (document, documents, "corpus")):
            if id_ not in known:
                raise TaskError(f"{place}: {id_!r} is not in the {what} of {folder}")
        own = judged.setdefault(query, {})
        if numbers[document] in own:
            raise TaskError(f"{place}: {query!r} and {document!r} are judged twice")
        relevance = task_files.number(row, "score", place)
        if relevance != int(relevance):
            raise TaskError(f"{place}: expected a whole number in 'score', found {relevance}")
        own[numbers[document]] = int(relevance)
    last_first = sorted(numbers, reverse=True)
    tie_order = np.empty(len(numbers), np.int64)
    tie_order[[numbers[id_] for id_ in last_first]] = np.arange(len(numbers))
    return Retrieval(
        spec,
        [queries[query] for query in judged],
        list(documents.values()),
        list(judged.values()),
        tie_order,
    )


def _texts(path: Path, *, titled: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for place, row in task_files.rows(path, ("_id", "text")):
        id_ = task_files.name(row, "_id", place)
        if id_ in texts:
            raise TaskError(f"{place}: the id {id_!r} stands twice in the file")
        if titled:
            title = task_files.plain(row, "title", place)
            texts[id_] = f"{title} {task_files.plain(row, 'text', place)}".strip()
        else:
            texts[id_] = task_files.text(row, "text", place)
    return texts
