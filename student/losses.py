"""The three losses of the paper, one pure function per equation, and their weighted sum.

    cosine      Eq. 1   1 - s_x·t_x, mean over the batch
    similarity  Eq. 2   MSE(S Sᵀ, T Tᵀ)
    relative    Eq. 3   hinge on the order of S Sᵀ against the order of T Tᵀ  (student/ranking.py)
    contrastive  not in the paper: which of the batch's targets is one's own
    combined    Eq. 4   λ₁·cosine + λ₂·similarity + λ₃·relative

Rules they share:
- Rows are L2-normalised inside; give the vectors as the head or the cache has them.
- Everything is computed in float32 at least, outside autocast and without TF32 or bf16 products:
  between 0.5 and 1 bf16 has steps of 0.0039 and TF32 of 0.0005, against a margin of 0.015. The
  result has the student's dtype, promoted to float32; float64 stays float64.
- The teacher gets no gradient. Where several heads learn from one batch, wrap the teacher's
  vectors in a `TeacherBatch` once and pass that: its similarities and their order are then computed
  once instead of once a head.
- Functions see the batch they are given: to use the global batch, gather first.

Shapes: B texts in the batch, D head width, T target width, P = B(B - 1)/2 pairs of texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from student.ranking import TeacherOrder, Ties, relative_order_loss


@dataclass(frozen=True, eq=False)
class TeacherBatch:
    """The teacher's vectors of one batch, and what the losses derive from them, each computed once.

    `target_BT` holds the vectors as the cache has them, any floating dtype, normalised or not.

    Raises ValueError for a tensor that is not a floating matrix with at least one row.
    """

    target_BT: Tensor

    def __post_init__(self) -> None:
        _check_vectors("teacher", self.target_BT)

    @cached_property
    def unit_BT(self) -> Tensor:
        """The vectors, each of norm 1, without gradient."""
        return _unit_rows(self.target_BT.detach())

    @cached_property
    def similarity_BB(self) -> Tensor:
        """The cosine of every two texts: T Tᵀ."""
        return _similarities(self.unit_BT)

    @cached_property
    def order(self) -> TeacherOrder:
        """The order of the B(B - 1)/2 pairs of texts, in row-major order, by similarity."""
        return TeacherOrder.of(_pairs(self.similarity_BB))


def cosine_loss(student_BD: Tensor, teacher_BT: Tensor | TeacherBatch) -> Tensor:
    """Mean over the batch of 1 - s_x·t_x (Eq. 1), from 0 (same directions) to 2 (opposite ones).

    The paper writes a sum; its weight λ₁ = 10 belongs to the mean, which the authors' code takes.

    Raises ValueError where the batches or the widths differ.
    """
    teacher = _checked(student_BD, teacher_BT)
    _check_widths(student_BD, teacher)
    return _cosine(_unit_rows(student_BD), teacher)


def similarity_loss(
    student_BD: Tensor, teacher_BT: Tensor | TeacherBatch, focus: float | None = None
) -> Tensor:
    """Mean squared difference of the cosines of every two texts: MSE(S Sᵀ, T Tᵀ) (Eq. 2).

    The mean is over all B x B entries, with the diagonal, which is 0. With a `focus` (not in the
    paper), over two different texts each, weighted by exp(t_x·t_y / focus): most pairs of a batch
    have nothing to do with each other, and the few that have decide what is found first. Widths may
    differ.

    Raises ValueError where the batches differ or hold fewer than two texts, which have no pair.
    """
    teacher = _checked(student_BD, teacher_BT)
    _check_texts("similarity", teacher, least=2)
    return _similarity(_similarities(_unit_rows(student_BD)), teacher, focus)


def relative_similarity_loss(
    student_BD: Tensor,
    teacher_BT: Tensor | TeacherBatch,
    margin: float = 0.015,
    ties: Ties = "exclude",
) -> Tensor:
    """Mean hinge over pairs of pairs of texts that the student orders unlike the teacher (Eq. 3).

    Wherever the teacher finds texts i, j more similar than m, n the term is
    max(0, s_m·s_n - s_i·s_j + margin), in units of cosine. The mean is over all C(C(B, 2), 2)
    pairs of pairs, exactly, in O(B² log B) time and O(B²) memory. Widths may differ. The loss is
    not 0 at S = T: similarities closer than the margin leave a floor. `ties` is explained at
    `student.ranking.relative_order_loss`.

    Raises ValueError where the batches differ or hold fewer than three texts, which have no two
    pairs to compare.
    """
    teacher = _checked(student_BD, teacher_BT)
    _check_texts("relative", teacher, least=3)
    return _relative(_similarities(_unit_rows(student_BD)), teacher, margin, ties)


def contrastive_loss(
    student_BD: Tensor, teacher_BT: Tensor | TeacherBatch, temperature: float = 0.05
) -> Tensor:
    """Cross entropy of finding one's own target among the batch's, and the other way round.

    -log softmax of s_x·t_y / temperature at y = x, the mean over the batch and over both
    directions. Targets that are one's own by value (images of one caption) are left out of the
    others. Not in the paper: its stage 4 oscillates.

    Raises ValueError where the batches or the widths differ, or hold fewer than two rows.
    """
    teacher = _checked(student_BD, teacher_BT)
    _check_widths(student_BD, teacher)
    _check_texts("contrastive", teacher, least=2)
    return _contrastive(_unit_rows(student_BD), teacher, temperature)


def combined_loss(
    student_BD: Tensor,
    teacher_BT: Tensor | TeacherBatch,
    *,
    cosine: float,
    similarity: float,
    relative: float,
    margin: float,
    ties: Ties = "exclude",
    contrastive: float = 0.0,
    temperature: float = 0.05,
    focus: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the three losses of one head (Eq. 4), and its parts.

    `cosine`, `similarity` and `relative` are the weights λ₁, λ₂, λ₃ (the paper: 10, 200, 20, with
    a margin of 0.015). The parts are unweighted, detached and named like the weights. A
    loss of weight 0 is neither computed nor among the parts, nor are its conditions checked.

    Raises ValueError as the three losses do, and where all weights are 0.
    """
    weights = {
        "cosine": cosine,
        "similarity": similarity,
        "relative": relative,
        "contrastive": contrastive,
    }
    if not any(weights.values()):
        raise ValueError("combined loss: all weights are 0, so there is nothing to learn")
    teacher = _checked(student_BD, teacher_BT)
    parts: dict[str, Tensor] = {}
    unit_BD = _unit_rows(student_BD)
    if cosine:
        _check_widths(student_BD, teacher)
        parts["cosine"] = _cosine(unit_BD, teacher)
    if similarity or relative:
        _check_texts("relative" if relative else "similarity", teacher, least=3 if relative else 2)
        similarity_BB = _similarities(unit_BD)
        if similarity:
            parts["similarity"] = _similarity(similarity_BB, teacher, focus)
        if relative:
            parts["relative"] = _relative(similarity_BB, teacher, margin, ties)
    if contrastive:
        _check_widths(student_BD, teacher)
        parts["contrastive"] = _contrastive(unit_BD, teacher, temperature)
    total = torch.stack([weights[name] * loss for name, loss in parts.items()]).sum()
    return total, {name: loss.detach() for name, loss in parts.items()}


def _cosine(unit_BD: Tensor, teacher: TeacherBatch) -> Tensor:
    return 1 - (unit_BD * teacher.unit_BT.to(unit_BD.dtype)).sum(dim=1).mean()


_SAME = 1e-6
"""Cosines this near to 1 are those of equal targets."""


def _contrastive(unit_BD: Tensor, teacher: TeacherBatch, temperature: float) -> Tensor:
    with _full_precision(unit_BD.device.type):
        scores_BB = unit_BD @ teacher.unit_BT.to(unit_BD.dtype).T / temperature
    same_BB = teacher.similarity_BB > 1 - _SAME
    same_BB = same_BB.fill_diagonal_(False)
    scores_BB = scores_BB.masked_fill(same_BB, -torch.inf)
    own_B = torch.arange(len(scores_BB), device=scores_BB.device)
    return (F.cross_entropy(scores_BB, own_B) + F.cross_entropy(scores_BB.T, own_B)) / 2


def _similarity(similarity_BB: Tensor, teacher: TeacherBatch, focus: float | None) -> Tensor:
    target_BB = teacher.similarity_BB.to(similarity_BB.dtype)
    squares_BB = (similarity_BB - target_BB).square()
    if focus is None:
        return squares_BB.mean()
    others_BB = (target_BB / focus).fill_diagonal_(-torch.inf)
    return (others_BB.flatten().softmax(0) * squares_BB.flatten()).sum()


def _relative(similarity_BB: Tensor, teacher: TeacherBatch, margin: float, ties: Ties) -> Tensor:
    return relative_order_loss(_pairs(similarity_BB), teacher.order, margin, ties)


def _unit_rows(x_BD: Tensor) -> Tensor:
    # Promoted first: the norm of a 12,288-wide row in bf16 has two digits.
    return F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=1)


def _similarities(unit_BD: Tensor) -> Tensor:
    with _full_precision(unit_BD.device.type):
        return unit_BD @ unit_BD.T


def _pairs(similarity_BB: Tensor) -> Tensor:
    """The entries above the diagonal, in row-major order: one for every pair of texts."""
    batch = len(similarity_BB)
    row_P, column_P = torch.triu_indices(batch, batch, offset=1, device=similarity_BB.device)
    return similarity_BB.flatten().index_select(0, row_P * batch + column_P)


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Multiply float32 as float32, whatever the trainer chose for its own products."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _checked(student_BD: Tensor, teacher_BT: Tensor | TeacherBatch) -> TeacherBatch:
    _check_vectors("student", student_BD)
    teacher = teacher_BT if isinstance(teacher_BT, TeacherBatch) else TeacherBatch(teacher_BT)
    if len(student_BD) != len(teacher.target_BT):
        raise ValueError(
            f"student has {len(student_BD)} rows, teacher {len(teacher.target_BT)}: "
            "row for row they must be vectors of the same texts"
        )
    return teacher


def _check_vectors(who: str, x: Tensor) -> None:
    if x.ndim != 2 or not len(x) or not x.is_floating_point():
        raise ValueError(
            f"{who}: expected floating vectors [batch, width] with at least one row, "
            f"found {x.dtype} of shape {tuple(x.shape)}"
        )


def _check_widths(student_BD: Tensor, teacher: TeacherBatch) -> None:
    student_width, target_width = student_BD.shape[1], teacher.target_BT.shape[1]
    if student_width != target_width:
        raise ValueError(
            f"cosine loss: student is {student_width} wide, teacher {target_width}; a cosine needs "
            "one width: use a head as wide as the target, or cosine weight 0 for this head"
        )


def _check_texts(name: str, teacher: TeacherBatch, least: int) -> None:
    if len(teacher.target_BT) < least:
        raise ValueError(
            f"{name} loss compares texts with each other: it needs {least} or more a batch, "
            f"found {len(teacher.target_BT)}"
        )
