"""What narrow vectors are for: a short list, that the full ones then put in order.

A score of the first ten asks a narrow vector to do the full one's work alone. In use it picks some
hundred candidates out of all, for a part of the memory and the arithmetic; what it must not do is
miss the right one.
"""

from __future__ import annotations

import numpy as np

from student.encoding import FloatArray, unit
from yardstick.caches import Material
from yardstick.ours import Encode

LENGTH = 100


def shortlist(encode: Encode, material: Material, which: str) -> dict[str, dict[str, float]]:
    """By vector: its recall@100 as a share of the teacher's, full width, mean and worst task."""
    teacher = material.teacher
    shares: dict[str, list[float]] = {}
    for task in material.tasks(which):
        queries, documents = encode(task.queries), encode(task.documents)
        whole = recall(teacher.of(task.queries), teacher.of(task.documents))
        for name in queries:
            shares.setdefault(name, []).append(recall(queries[name], documents[name]) / whole)
    return {
        name: {"mean": float(np.mean(values)), "worst": min(values)}
        for name, values in shares.items()
    }


def recall(queries: FloatArray, documents: FloatArray) -> float:
    """The share of queries that find the document at their own place among the first hundred."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(unit(documents))
    _, nearest = index.search(unit(queries), min(LENGTH, len(documents)))
    return float((nearest == np.arange(len(queries))[:, None]).any(axis=1).mean())
