"""Heads without descent: FC1 by ridge regression, a reduced head as FC1's principal part.

With the body frozen, what a linear head can reach is known in closed form from two moments of the
pooled states, summed in one pass. That is worth the first steps of training; the losses of the
paper then polish it.

Shape suffixes: N rows, H pooled width (with a constant 1 appended: G = H + 1), T target width,
D reduced width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from student.batches import Order
from student.evaluate import POOLED, encode
from student.model import Student
from student.stages import FULL_HEAD
from teacher_cache.reader import CacheReader

RIDGE = 1e-2
"""Strength of the regularisation, as a share of the mean variance of the pooled states."""

_CHUNK = 1024

Matrix = NDArray[np.float64]


class Moments:
    """Second moments of pooled states, and of pooled states with their targets, in float64."""

    def __init__(self, hidden: int, target_width: int) -> None:
        self.rows = 0
        self.states_GG: Matrix = np.zeros((hidden + 1, hidden + 1))
        self.targets_GT: Matrix = np.zeros((hidden + 1, target_width))

    def add(self, pooled_NH: NDArray[np.float32], target_NT: NDArray[np.floating]) -> None:
        """Take in N more rows."""
        states_NG = np.ones((len(pooled_NH), pooled_NH.shape[1] + 1), np.float64)
        states_NG[:, :-1] = pooled_NH
        self.rows += len(states_NG)
        self.states_GG += states_NG.T @ states_NG
        self.targets_GT += states_NG.T @ target_NT.astype(np.float64)


def ridge(moments: Moments, strength: float = RIDGE) -> Matrix:
    """The linear map [T, G], bias last, that minimises the squared distance to the target.

    The bias is not regularised. The target's rows are of length 1, so the least distance is the
    greatest cosine but for the length of what is predicted.
    """
    penalty_GG = np.eye(len(moments.states_GG))
    penalty_GG[-1, -1] = 0
    mean_H = moments.states_GG[:-1, -1] / moments.rows
    variance = np.trace(moments.states_GG[:-1, :-1]) / moments.rows - mean_H @ mean_H
    penalty_GG *= strength * moments.rows * variance / len(mean_H)
    solution_GT = np.linalg.solve(moments.states_GG + penalty_GG, moments.targets_GT)
    return np.asarray(solution_GT.T, np.float64)


def reduce(full_TG: Matrix, states_GG: Matrix, width: int) -> Matrix:
    """The head [D, G] whose inner products are nearest to those of `full_TG`.

    These are the projections of FC1's outputs on their first D principal directions (about 0, for
    it is inner products that count, not distances from a mean): of all D-wide linear heads it
    has the least squared error in the matrix of products (Eckart and Young). The directions come
    from G × G matrices alone, whatever T is.

    Raises:
        ValueError: D is more than G, the rank there is.
    """
    if width > len(states_GG):
        raise ValueError(f"at most {len(states_GG)} directions, asked for {width}")
    products_GG = full_TG.T @ full_TG
    values, vectors = np.linalg.eigh(states_GG)
    root_GG = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inverse_GG = np.linalg.pinv(root_GG, hermitian=True)
    strengths, directions = np.linalg.eigh(root_GG @ products_GG @ root_GG)
    strongest = np.argsort(strengths)[::-1][:width]
    scale = np.sqrt(np.clip(strengths[strongest], 0, None))
    head: Matrix = scale[:, None] * (directions[:, strongest].T @ inverse_GG)
    return head


def start_heads(
    student: Student,
    reader: CacheReader,
    teachers: Sequence[str],
    heads: Sequence[str],
    *,
    rows: int,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Set the named heads to their closed form, from so many rows of the training order.

    FC1 is solved for the target; a reduced head follows from FC1 as it then is. One pass of the
    body over the rows, which `advance` is told of.
    """
    chosen = Order(len(reader.train_rows), min(rows, len(reader.train_rows)), seed).rows_of(0)
    hidden: int = student.text.config.hidden_size  # type: ignore[union-attr, assignment]
    solve = FULL_HEAD in heads
    moments = Moments(hidden, student.head_widths[FULL_HEAD] if solve else 0)
    for start in range(0, len(chosen), _CHUNK):
        part = chosen[start : start + _CHUNK]
        pooled = encode(student, reader.texts(part), (), advance=advance)[POOLED]
        target = reader.vectors(part, teachers) if solve else np.empty((len(part), 0), np.float16)
        moments.add(pooled, target)
    if solve:
        _set(student, FULL_HEAD, ridge(moments))
    full_TG = _matrix(student, FULL_HEAD)
    for name in heads:
        if name != FULL_HEAD:
            width = student.head_widths[name]
            _set(student, name, reduce(full_TG, moments.states_GG, width))


def _matrix(student: Student, name: str) -> Matrix:
    weight, bias = student.heads[name].parameters()
    matrix: Matrix = torch.cat([weight, bias[:, None]], dim=1).detach().cpu().double().numpy()
    return matrix


@torch.no_grad()
def _set(student: Student, name: str, head_DG: Matrix) -> None:
    weight, bias = student.heads[name].parameters()
    weight.copy_(torch.from_numpy(head_DG[:, :-1]))
    bias.copy_(torch.from_numpy(head_DG[:, -1]))
