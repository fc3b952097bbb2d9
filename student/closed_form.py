"""Heads without descent: FC1 by ridge regression or from a teacher, a reduced head as FC1's part.

With the body frozen, what a linear head can reach is known in closed form from two moments of the
pooled states, summed in one pass. That is worth the first steps of training; the losses of the
paper then polish it.

Shape suffixes: N rows, H pooled width (with a constant 1 appended: G = H + 1), T target width,
D reduced width, W width of one teacher's block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from student.encoding import encode
from student.fitting import fitted
from student.model import POOLED, Student
from student.order import Order, Rows
from student.stages import FULL_HEAD, StageError, Start
from student.targets import weigh
from student.teacher_head import own_heads, read_head
from teacher_cache.format import Block
from teacher_cache.reader import CacheReader

RIDGE = 1e-2
"""Strength of the regularisation, as a share of the mean variance of the pooled states."""

COPY_AGREES = 0.9
"""Least agreement of a copied head with its teacher's vectors. The same body and prompt give nearly
1, less by the spread of the vectors' lengths and the teacher's rounding; another body gives about
0; another prompt lies between."""

_CHUNK = 1024

Matrix = NDArray[np.float64]


class Moments:
    """Second moments of pooled states, and of pooled states with their targets, in float64."""

    def __init__(self, hidden: int, target_width: int) -> None:
        self.rows = 0
        self.states_GG: Matrix = np.zeros((hidden + 1, hidden + 1))
        self.targets_GT: Matrix = np.zeros((hidden + 1, target_width))
        self.target_squares_T: NDArray[np.float64] = np.zeros(target_width)

    def add(self, pooled_NH: NDArray[np.float32], target_NT: NDArray[np.floating]) -> None:
        """Take in N more rows."""
        states_NG = np.ones((len(pooled_NH), pooled_NH.shape[1] + 1), np.float64)
        states_NG[:, :-1] = pooled_NH
        self.rows += len(states_NG)
        self.states_GG += states_NG.T @ states_NG
        exact_NT = target_NT.astype(np.float64)
        self.targets_GT += states_NG.T @ exact_NT
        self.target_squares_T += np.einsum("nt,nt->t", exact_NT, exact_NT)


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


def copied(head_WG: Matrix, moments: Moments, columns: slice) -> tuple[Matrix, float]:
    """A teacher's own head at the length its block has in the target, and how well it agrees.

    The target's block is the teacher's vector at a fixed length, the head's output at a length that
    differs from text to text. No linear map divides by that length; the one factor that brings the
    outputs nearest to the target is Σ v·t / Σ v·v. Directions, and so every cosine of the block
    alone, are the teacher's exactly.

    The agreement is Σ v·t / √(Σ v·v · Σ t·t), from -1 to 1: the cosine of all outputs with all
    targets, taken as two long vectors.
    """
    products = float((head_WG * moments.targets_GT[:, columns].T).sum())
    squares = float(((head_WG @ moments.states_GG) * head_WG).sum())
    target_squares = float(moments.target_squares_T[columns].sum())
    return head_WG * (products / squares), products / math.sqrt(squares * target_squares)


def start_heads(
    student: Student,
    reader: CacheReader,
    teachers: Sequence[str],
    ways: Mapping[str, Start],
    *,
    rows: int,
    seed: int,
    init: Path,
    teacher_weights: Mapping[str, float],
    focus: Mapping[str, float | None] = MappingProxyType({}),
    kept_states: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Set the named heads to their closed form, from so many rows of the training order.

    FC1 is solved for the target, weighed as in training; for "copy" the block of the teacher whose
    own head lies in `init` is that head; for "identity" there is nothing to solve. A reduced head
    follows from FC1 as it then is, a "fitted" one with the `focus` of its similarity loss. Where
    pooled states are needed, one pass of the body over the rows, which `advance` is told of; none
    with the cache's `kept_states`.

    Raises:
        StageError: a head that is to be copied does not give its teacher's vectors.
    """
    blocks = reader.blocks(teachers)
    chosen = Order(len(reader.train_rows), min(rows, len(reader.train_rows)), seed).rows_of(0)

    def targets(part: Rows) -> NDArray[np.floating]:
        stored = torch.from_numpy(reader.vectors(part, teachers))
        return weigh(stored, blocks, teacher_weights).numpy()

    solve = ways.get(FULL_HEAD) in ("ridge", "copy")
    moments = Moments(student.hidden, student.head_widths[FULL_HEAD] if solve else 0)
    if solve or "principal" in ways.values():
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            if kept_states:
                pooled = reader.pooled(part).astype(np.float32)
                advance(len(part))
            else:
                pooled = encode(student, reader.texts(part), (), advance=advance)[POOLED]
            moments.add(pooled, targets(part) if solve else np.empty((len(part), 0), np.float16))
    if solve:
        full_TG = ridge(moments)
        if ways[FULL_HEAD] == "copy":
            columns, head_WG = _best_copy(init, blocks, moments, student.hidden)
            full_TG[columns] = head_WG
        _set(student, FULL_HEAD, full_TG)
    elif FULL_HEAD in ways:
        _set(student, FULL_HEAD, np.eye(student.hidden, student.hidden + 1))
    full_TG = _matrix(student, FULL_HEAD)
    vectors_NT = targets(chosen) if "fitted" in ways.values() else np.empty((0, 0), np.float16)
    for name, way in ways.items():
        width = student.head_widths[name]
        if way == "principal":
            _set(student, name, reduce(full_TG, moments.states_GG, width))
        elif way == "fitted":
            _set(student, name, fitted(vectors_NT, width, focus.get(name), seed) @ full_TG)
    if not moments.rows:
        advance(len(chosen))


def _best_copy(
    init: Path, blocks: Sequence[Block], moments: Moments, hidden: int
) -> tuple[slice, Matrix]:
    """Where to put which head; of several teachers with a head of their width, the nearest."""
    files = own_heads(init, blocks)
    best: tuple[float, str, slice, Matrix] | None = None
    offset = 0
    for block in blocks:
        columns = slice(offset, offset + block.width)
        offset += block.width
        if block.teacher in files:
            head_WG = read_head(files[block.teacher], block.width, hidden)
            head_WG, agreement = copied(head_WG, moments, columns)
            if best is None or agreement > best[0]:
                best = agreement, block.teacher, columns, head_WG
    assert best is not None, "own_heads names at least one"
    agreement, teacher, columns, head_WG = best
    if agreement < COPY_AGREES:
        raise StageError(
            f"{files[teacher]} does not give the vectors that {teacher} has in the cache "
            f"(agreement {agreement:.2f}, expected {COPY_AGREES} or more): the student's body or "
            'prompt is not that teacher\'s; begin with closed_form = { fc1 = "ridge" }'
        )
    return columns, head_WG


def _matrix(student: Student, name: str) -> Matrix:
    weight, bias = student.heads[name].parameters()
    matrix: Matrix = torch.cat([weight, bias[:, None]], dim=1).detach().cpu().double().numpy()
    return matrix


@torch.no_grad()
def _set(student: Student, name: str, head_DG: Matrix) -> None:
    weight, bias = student.heads[name].parameters()
    weight.copy_(torch.from_numpy(head_DG[:, :-1]))
    bias.copy_(torch.from_numpy(head_DG[:, -1]))
