"""The exact relative-similarity loss (paper Eq. 3) in O(P log P) time and O(P) memory.

    loss = 1/N · Σ over (i, j) with t_i > t_j of max(0, s_j - s_i + margin),   N = P(P - 1)/2

s and t are the student's and the teacher's similarities of the same P pairs of texts, so the sum
runs over pairs of pairs: 33,028,128 terms for a batch of 128. Nothing is sampled or approximated.

Counting is enough. Once the active terms (hinge > 0) are known, the loss is linear in s: with

    up_i   = number of active terms in which i is the higher pair of the teacher (it wants to rise)
    down_i = number of active terms in which i is the lower one

the gradient is (down_i - up_i)/N and the loss is [Σ (down_i - up_i)·s_i + margin · Σ up_i]/N. The
counts are integers: from the same similarities the gradient is the same on every device, exactly.

Counting by ranks. Sort by the student. The partners of i in active terms then lie in a suffix of
the places where i is the higher pair, in a prefix where it is the lower; two binary searches find
where these begin and end. What remains is one question, asked twice for every pair: how many of
the first `prefix` places hold a teacher rank below `value`? A wavelet tree answers all questions
at once: the teacher's ranks, in the student's order, are split by their highest bit, stably, then
each half by the next bit, and so on; each question walks down beside them towards its value,
with one look-up a level in a running count. A level is a dozen operations on flat tensors, the
same on CPU and GPU, and there are 13 levels for a batch of 128, 19 for 1024.

Teacher ties. A rank of its own for each pair (ties in index order) gives the tree full nodes; the
question "how many are lower" asks with the first rank of the pair's tie group and "how many are
higher" with the rank after the last, so that tied pairs never count against each other.

Precision. Student values are compared and summed in float64, from the values as given, centred:
a term is active when float64(s_j) + margin > s_i, strictly.

Shapes: P pairs of texts, Q questions walking down the tree (3P: every pair itself, then its two
questions). A place is a position in the student's order, a rank one in the teacher's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Ties = Literal["exclude", "include"]

# Ranks and places are int32, half the memory traffic of int64: enough for 65,536 texts a batch.
MAX_PAIRS = 2**31 - 2


@dataclass(frozen=True, slots=True, eq=False)
class TeacherOrder:
    """The teacher's order of P pairs: all the loss needs of the teacher, for any number of heads.

    `rank_P` is each pair's position in ascending order, ties in index order; `first_P` is the
    lowest rank among the pairs tied with it, `end_P` one past the highest. All are int32.
    """

    rank_P: Tensor
    first_P: Tensor
    end_P: Tensor

    @classmethod
    def of(cls, target_P: Tensor) -> "TeacherOrder":
        """Sort the teacher's similarities, compared as they are, in their own dtype.

        Values must be finite: a NaN has no rank, and would not show in the loss.

        Raises ValueError for a tensor that is not one-dimensional, or with fewer than two pairs.
        """
        if target_P.ndim != 1 or not 2 <= len(target_P) <= MAX_PAIRS:
            raise ValueError(
                f"teacher order: expected a vector of 2 to {MAX_PAIRS:,} similarities, "
                f"found shape {tuple(target_P.shape)}"
            )
        sorted_P, pair_P = target_P.detach().sort(stable=True)
        ascending_P = torch.arange(len(pair_P), dtype=torch.int32, device=target_P.device)
        first_P = torch.searchsorted(sorted_P, sorted_P, out_int32=True)
        end_P = torch.searchsorted(sorted_P, sorted_P, right=True, out_int32=True)
        return cls(*(_unsort(x_P, pair_P) for x_P in (ascending_P, first_P, end_P)))


def relative_order_loss(
    student_P: Tensor, order: TeacherOrder, margin: float, ties: Ties = "exclude"
) -> Tensor:
    """Mean hinge of the student over all pairs of pairs that the teacher orders (paper Eq. 3).

    `student_P` holds the student's similarities of the pairs that `order` ranks; the result is a
    scalar of the same dtype. A pair i that the teacher puts above j costs
    max(0, s_j - s_i + margin), so even a student equal to its teacher pays for differences
    smaller than the margin. The mean is over all N = P(P - 1)/2, ordered or tied.

    `ties` says what a tie of the teacher costs. "exclude": nothing, as in Eq. 3. "include": the
    rule of the authors' code, a margin ranking loss over each i < j, once, with the label +1 where
    t_i > t_j and -1 everywhere else: of two tied pairs the one with the larger index counts as
    the higher.

    The gradient is exact, and 0 for terms exactly at the hinge. It is a constant between hinges,
    so there is no second derivative: a double backward raises RuntimeError.

    Raises ValueError where the shapes differ or `ties` is unknown.
    """
    if student_P.shape != order.rank_P.shape:
        raise ValueError(
            f"relative loss: student has shape {tuple(student_P.shape)}, "
            f"but the teacher ordered {len(order.rank_P)} pairs"
        )
    if ties not in ("exclude", "include"):
        raise ValueError(f'relative loss: ties must be "exclude" or "include", found {ties!r}')
    loss: Tensor = _RelativeOrder.apply(student_P, order, margin, ties)  # type: ignore[no-untyped-call]
    return loss


class _RelativeOrder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_P: Tensor, order: TeacherOrder, margin: float, ties: Ties
    ) -> Tensor:
        terms = len(student_P) * (len(student_P) - 1) // 2
        sorted_P, pair_P = student_P.sort()
        sorted_P = sorted_P.double()
        up_P, down_P = _active_terms(sorted_P, pair_P, order, margin, ties)
        slope_P = (down_P - up_P).double()
        # Slopes sum to 0, so a shift is free; it keeps the digits of tightly clustered values.
        centred_P = sorted_P - sorted_P.mean()
        total = (slope_P * centred_P).sum() + margin * up_P.sum(dtype=torch.float64)
        ctx.save_for_backward(_unsort((slope_P / terms).to(student_P.dtype), pair_P))
        return (total / terms).to(student_P.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_P,) = ctx.saved_tensors
        return grad * gradient_P, None, None, None


def _active_terms(
    sorted_P: Tensor, pair_P: Tensor, order: TeacherOrder, margin: float, ties: Ties
) -> tuple[Tensor, Tensor]:
    """Count, for the pair at each place, the active terms in which it is the higher, the lower."""
    raised_P = sorted_P + margin
    prefix_lower_P = torch.searchsorted(raised_P, sorted_P, right=True, out_int32=True)
    prefix_higher_P = torch.searchsorted(sorted_P, raised_P, out_int32=True)
    rank_P = order.rank_P.index_select(0, pair_P)
    if ties == "include":
        first_P, end_P = rank_P, rank_P + 1
    else:
        first_P, end_P = order.first_P.index_select(0, pair_P), order.end_P.index_select(0, pair_P)
    below_lower_P, below_higher_P = _count_below(
        rank_P, torch.cat([first_P, end_P]), torch.cat([prefix_lower_P, prefix_higher_P])
    ).chunk(2)
    # Of the first_P lower pairs all but those in the prefix; of the prefix all but the not higher.
    return first_P - below_lower_P, prefix_higher_P - below_higher_P


def _count_below(rank_P: Tensor, value_2P: Tensor, prefix_2P: Tensor) -> Tensor:
    """Count, for each question, the first `prefix` places that hold a rank below `value`.

    `rank_P` is a permutation of 0..P-1, so a node of the tree at height h covers the ranks
    [k·2^h, (k+1)·2^h), and lies at exactly those positions of its level.
    """
    pairs = len(rank_P)
    # Every pair walks down too, as the question for its own rank: that is the stable split.
    value_Q = torch.cat([rank_P, value_2P])
    place_P = torch.arange(pairs, dtype=torch.int32, device=rank_P.device)
    inside_Q = torch.cat([place_P, prefix_2P])  # position within the node
    below_Q = torch.zeros_like(value_Q)
    goes_left_P = torch.empty_like(rank_P)
    left_before = rank_P.new_zeros(pairs + 1)
    # bit_length of P, not of P - 1: `value` may be P, one past the last rank.
    for bit in reversed(range(pairs.bit_length())):
        goes_right_Q = (value_Q >> bit) & 1
        half_start_Q = (value_Q >> (bit + 1)) << bit  # all nodes before are full: half went left
        position_Q = 2 * half_start_Q + inside_Q
        goes_left_P.scatter_(0, position_Q[:pairs].long(), 1 - goes_right_Q[:pairs])
        torch.cumsum(goes_left_P, 0, out=left_before[1:])
        left_Q = left_before.index_select(0, position_Q) - half_start_Q
        below_Q.addcmul_(goes_right_Q, left_Q)
        inside_Q = left_Q + goes_right_Q * (inside_Q - 2 * left_Q)
    return below_Q[pairs:]


def _unsort(sorted_P: Tensor, pair_P: Tensor) -> Tensor:
    return torch.empty_like(sorted_P).scatter_(0, pair_P, sorted_P)
