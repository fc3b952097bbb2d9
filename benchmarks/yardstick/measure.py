"""What a student keeps of its teacher: on unseen tasks, and on held-out rows of the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from student.encoding import FloatArray, unit
from student.evaluation.retention import order_agreement
from teacher_cache.reader import CacheReader
from yardstick.caches import Material, TeacherVectors
from yardstick.ours import Encode
from yardstick.scores import Gains, Share, mean_of, ndcg, share_of
from yardstick.texts import Task

NEIGHBOURS = 10
LONG = 32
"""Tokens up to which a text is short: the tasks' own texts hardly ever have more."""

FULL = "fc1"


def principal(vectors_NT: FloatArray, widths: Sequence[int]) -> dict[int, FloatArray]:
    """Projections [T, D] on the first D principal components, as scikit-learn finds them."""
    from sklearn.decomposition import PCA

    found = PCA(n_components=max(widths), random_state=0).fit(vectors_NT).components_
    return {width: found[:width].T.astype(np.float32) for width in widths}


def with_principal(
    encode: Encode, widths: Mapping[str, int], projections: Mapping[int, FloatArray]
) -> Encode:
    """The same encoder, that gives the vectors it lacks as projections of the full ones."""

    def vectors(texts: Sequence[str]) -> dict[str, FloatArray]:
        found = encode(texts)
        return found | {
            name: found[FULL] @ projections[width]
            for name, width in widths.items()
            if name not in found
        }

    return vectors


def measure(encode: Encode, material: Material, which: str) -> dict[str, Any]:
    """All figures of a student, as plain data; `which` set of tasks it is asked.

    For every vector: its score on each task, as a share of the teacher's with the standard error
    over the queries, and the means over the tasks; against FC1, the mean share and the worst.
    `asymmetric` is FC1's queries among the teacher's documents. `parts` are what each query, or
    pair of texts, has in the error of FC1's mean.
    """
    teacher = material.teacher
    found = [_on_task(encode, teacher, task) for task in material.tasks(which)]
    names = [name for name in found[0] if name != "teacher"]
    tasks = {
        task.name: {
            "teacher": float(gains["teacher"].mean()),
            **{
                name: {"score": float(gains[name].mean()), **_plain(_share(gains, name))}
                for name in names
            },
        }
        for task, gains in zip(material.tasks(which), found, strict=True)
    }
    pairs = [
        [frozenset(pair) for pair in zip(task.queries, task.documents, strict=True)]
        for task in material.tasks(which)
    ]
    means = {name: mean_of([_share(gains, name) for gains in found], pairs) for name in names}
    heads = [name for name in names if name != "asymmetric"]
    of_full = {name: [gains[name].mean() / gains[FULL].mean() for gains in found] for name in heads}
    return {
        "tasks": tasks,
        "mean": {name: _plain(share) for name, share in means.items()},
        "parts": [float(f"{part:.4g}") for part in means[FULL].parts],
        "of fc1": {
            name: {"mean": float(np.mean(shares)), "worst": float(min(shares))}
            for name, shares in of_full.items()
        },
        "retention": _retention(encode, material.reader),
    }


def _plain(share: Share) -> dict[str, float]:
    return {"share": share.share, "standard_error": share.standard_error}


def _share(gains: Mapping[str, Gains], name: str) -> Share:
    return share_of(gains[name], gains["teacher"])


def _on_task(encode: Encode, teacher: TeacherVectors, task: Task) -> dict[str, Gains]:
    queries, documents = encode(task.queries), encode(task.documents)
    gains = {name: ndcg(queries[name], documents[name]) for name in queries}
    targets = teacher.of(task.documents)
    gains["asymmetric"] = ndcg(queries[FULL], targets)
    gains["teacher"] = ndcg(teacher.of(task.queries), targets)
    return gains


def _retention(encode: Encode, reader: CacheReader) -> dict[str, Any]:
    """By vector cosine (FC1's), order and neighbours: on all held-out rows, and on the long ones
    where these are more than a few.
    """
    rows = reader.held_out_rows
    target = unit(reader.vectors(rows).astype(np.float32))
    long = reader.tokens(rows).max(axis=1) > LONG
    vectors = {name: unit(found) for name, found in encode(reader.texts(rows)).items()}
    return {
        which: {
            name: {
                "cosine": float((found[of] * target[of]).sum(1).mean()) if name == FULL else None,
                "order": order_agreement(found[of], target[of]),
                "neighbours": kept_neighbours(found[of], target[of]),
            }
            for name, found in vectors.items()
        }
        for which, of in (("all", np.full(len(rows), True)), ("long", long))
        if of.sum() > NEIGHBOURS
    }


def kept_neighbours(student_ND: FloatArray, teacher_NT: FloatArray) -> float:
    """The share of each row's ten nearest teacher neighbours that are its student's ten too."""
    count = min(NEIGHBOURS, len(student_ND) - 1)
    nearest = []
    for rows in (student_ND, teacher_NT):
        scores = rows @ rows.T
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argpartition(-scores, count - 1, axis=1)[:, :count])
    both = [len(np.intersect1d(mine, theirs)) for mine, theirs in zip(*nearest, strict=True)]
    return float(np.mean(both)) / count
