"""What narrow vectors are for: a short list, that the full ones then put in order.

A score of the first ten asks a narrow vector to do the full one's work alone. In use it picks some
hundred candidates out of all, a sixth of the memory and the arithmetic; what it must not do is miss
the right one.
"""

from __future__ import annotations

import numpy as np

from student.encoding import FloatArray, unit
from yardstick.caches import Material
from yardstick.measure import FULL
from yardstick.ours import Encode

LENGTH = 100


def shortlist(encode: Encode, material: Material, which: str) -> dict[str, dict[str, float]]:
    """By vector: its recall@100 as a share of FC1's, on the mean and on the worst of the tasks."""
    found = [(encode(task.queries), encode(task.documents)) for task in material.tasks(which)]
    recalls = [
        {name: recall(queries[name], documents[name]) for name in queries}
        for queries, documents in found
    ]
    shares = {name: [task[name] / task[FULL] for task in recalls] for name in recalls[0]}
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
