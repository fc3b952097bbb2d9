"""What a student keeps of its teachers, on the cache's held-out rows. Nothing is downloaded.

Three figures, each for a student's vectors against a teacher's: the mean cosine (where the widths
agree), the agreement in the order of similarities, and the share of neighbours kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from student.model import POOLED, Student
from student.stages import FULL_HEAD
from teacher_cache.reader import CacheReader

FloatArray = NDArray[np.float32]

BOTH = "all teachers"
NEIGHBOURS = 10
ORDER_ROWS = 2000
"""Rows whose pairs are ranked: two million pairs, which Spearman's statistic sorts in a second."""

ENCODE_BATCH = 64


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


def unit(vectors: FloatArray) -> FloatArray:
    """The rows at length 1, in fp32."""
    vectors = vectors.astype(np.float32)
    norms: FloatArray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms


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


@torch.inference_mode()
def encode(
    student: Student,
    texts: Sequence[str],
    heads: Sequence[str],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, FloatArray]:
    """The student's vectors of texts, raw, in fp32: for each head [n, D], and `pooled` [n, H].

    The first columns of a head are asked for as in a stage: `fc1[:512]`.

    Raises:
        StageError: a head that is not there, or not as wide as asked.
    """
    student.eval()
    device = next(student.parameters()).device
    lengths = [len(text) for text in texts]
    order = np.argsort(lengths, kind="stable")
    found: dict[str, list[FloatArray]] = {name: [] for name in (POOLED, *heads)}
    for start in range(0, len(order), ENCODE_BATCH):
        chosen = order[start : start + ENCODE_BATCH]
        batch = student.batch([texts[i] for i in chosen], chunks=1).to(device)
        pooled = student.pooled(batch)
        outputs = {POOLED: pooled, **student.project(pooled, heads)}
        for name, vectors in outputs.items():
            found[name].append(vectors.cpu().numpy())
        advance(len(chosen))
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


def evaluate(
    student: Student,
    untrained: Student,
    reader: CacheReader,
    teachers: Sequence[str],
    *,
    heads: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Retention of the named heads against every teacher and all of them together.

    `untrained` is the student's initialisation: its pooled state is the first line, to show what
    training was worth. Against one teacher of several, FC1 stands with that teacher's slice of
    it. The answer is plain data: `rows`, and for each vector, for each teacher, the figures.

    Raises:
        ValueError: the cache has fewer than three held-out rows.
    """
    rows = reader.held_out_rows
    texts = reader.texts(rows)
    targets = {BOTH: reader.vectors(rows, teachers).astype(np.float32)}
    for block in reader.blocks(teachers):
        targets[block.teacher] = reader.vectors(rows, [block.teacher]).astype(np.float32)
    if len(teachers) == 1:
        del targets[BOTH]
    vectors = {"init": encode(untrained, texts, (), advance=advance)[POOLED]}
    vectors |= encode(student, texts, heads, advance=advance)
    slices = _slices(reader, teachers)

    def compare(name: str, values: FloatArray, teacher: str) -> dict[str, Any]:
        full = name == FULL_HEAD
        part = values[:, slices[teacher]] if full and teacher in slices else values
        return asdict(retention(part, targets[teacher], same_space=full))

    figures = {
        name: {teacher: compare(name, values, teacher) for teacher in targets}
        for name, values in vectors.items()
    }
    widths = {name: values.shape[1] for name, values in vectors.items()}
    return {"rows": len(rows), "widths": widths, "retention": figures}


def _slices(reader: CacheReader, teachers: Sequence[str]) -> Mapping[str, slice]:
    slices = {}
    offset = 0
    for block in reader.blocks(teachers):
        slices[block.teacher] = slice(offset, offset + block.width)
        offset += block.width
    return slices
