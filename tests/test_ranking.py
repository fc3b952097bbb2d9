"""The relative-order loss against literal double loops in float64: values, gradients, ties."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.ranking import TeacherOrder, Ties, relative_order_loss

BOTH: list[Ties] = ["exclude", "include"]
few: Callable[..., Any] = settings(derandomize=True, deadline=None, database=None, max_examples=30)
many: Callable[..., Any] = settings(few, max_examples=150)
rules = st.sampled_from(BOTH)


def pairs(texts: int) -> int:
    return texts * (texts - 1) // 2


def literal(student: Tensor, teacher: Tensor, margin: float, ties: Ties) -> tuple[float, Tensor]:
    """Eq. 3 as it is written: visit every two pairs once, in float64."""
    s, t = student.tolist(), teacher.tolist()
    loss, gradient = 0.0, [0.0] * len(s)
    for i, j in combinations(range(len(s)), 2):
        if t[i] == t[j] and ties == "exclude":
            continue
        higher, lower = (i, j) if t[i] > t[j] else (j, i)
        hinge = (s[lower] + margin) - s[higher]
        if hinge > 0:
            loss += hinge
            gradient[lower] += 1
            gradient[higher] -= 1
    terms = len(s) * (len(s) - 1) / 2
    return loss / terms, torch.tensor(gradient, dtype=torch.float64) / terms


def literal_matrix(
    student: Tensor, teacher: Tensor, margin: float, ties: Ties
) -> tuple[float, Tensor]:
    """The same over the full P x P matrix, for sizes where loops are slow."""
    s, t = student.double().numpy(), teacher.double().numpy()
    higher = t[:, None] > t[None, :]
    if ties == "include":
        index = np.arange(len(s))
        higher |= (t[:, None] == t[None, :]) & (index[:, None] > index[None, :])
    hinge = np.where(higher, np.maximum((s[None, :] + margin) - s[:, None], 0), 0)
    active = hinge > 0
    terms = len(s) * (len(s) - 1) / 2
    gradient = active.sum(axis=0) / terms - active.sum(axis=1) / terms
    return float(hinge.sum() / terms), torch.from_numpy(gradient)


def ours(student: Tensor, teacher: Tensor, margin: float, ties: Ties) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    loss = relative_order_loss(student, TeacherOrder.of(teacher), margin, ties)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


def assert_exact(student: Tensor, teacher: Tensor, margin: float, ties: Ties) -> None:
    oracle = literal if len(student) < 80 else literal_matrix
    expected, expected_gradient = oracle(student, teacher, margin, ties)
    loss, gradient = ours(student, teacher, margin, ties)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


def clustered(size: int, seed: int, spread: float) -> Tensor:
    """Similarities as trained models give them: close together, far from 0."""
    generator = torch.Generator().manual_seed(seed)
    return 0.7 + spread * torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ties", BOTH)
@pytest.mark.parametrize("size", [*range(2, 18), 31, 32, 33, 63, 64, 65])
def test_every_size_around_the_powers_of_two_is_exact(size: int, ties: Ties) -> None:
    assert_exact(clustered(size, size, 0.05), clustered(size, 99, 0.05), 0.015, ties)


@few
@given(st.integers(3, 48), st.integers(0, 2**32), st.sampled_from([0.002, 0.05, 1.0]), rules)
def test_real_valued_similarities_are_exact(m: int, seed: int, spread: float, ties: Ties) -> None:
    student, teacher = clustered(pairs(m), seed, spread), clustered(pairs(m), seed + 1, spread)
    assert_exact(student, (student + teacher) / 2, 0.015, ties)


# On a grid of 64ths with a margin of 64ths every sum is exact: terms sit exactly at the hinge,
# and both sides are full of ties.
grid = st.integers(-8, 8).map(lambda k: k / 64)
grid_pairs = st.integers(2, 40).flatmap(
    lambda size: st.tuples(*[st.lists(grid, min_size=size, max_size=size)] * 2)
)


@many
@given(grid_pairs, st.integers(-1, 6).map(lambda k: k / 64), rules)
def test_ties_and_terms_exactly_at_the_hinge_are_exact(
    values: tuple[list[float], list[float]], margin: float, ties: Ties
) -> None:
    student, teacher = (torch.tensor(side, dtype=torch.float64) for side in values)
    assert_exact(student, teacher, margin, ties)


@few
@given(st.integers(10, 48), st.integers(1, 40), st.integers(0, 2**32), rules)
def test_many_ties_at_full_size_are_exact(m: int, levels: int, seed: int, ties: Ties) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randint(levels, (pairs(m),), generator=generator).double() / 64 for _ in range(2)
    )
    assert_exact(student, teacher, 2 / 64, ties)


def test_a_term_exactly_at_the_hinge_costs_nothing_and_has_no_gradient() -> None:
    student = torch.tensor([0.5, 0.25], dtype=torch.float64)
    loss, gradient = ours(student, torch.tensor([1.0, 0.0]), 0.25, "exclude")
    assert loss == 0
    assert gradient.tolist() == [0, 0]
    loss, gradient = ours(student, torch.tensor([1.0, 0.0]), 0.2500001, "exclude")
    assert loss.item() == pytest.approx(1e-7)
    assert gradient.tolist() == [-1, 1]


@pytest.mark.parametrize("ties", BOTH)
def test_an_indifferent_teacher_orders_nothing_unless_ties_are_included(ties: Ties) -> None:
    student = clustered(pairs(9), 3, 0.05)
    teacher = torch.full_like(student, 0.5)
    assert_exact(student, teacher, 0.015, ties)
    loss, gradient = ours(student, teacher, 0.015, ties)
    assert (loss.item() == 0, gradient.count_nonzero().item() == 0) == (
        (True, True) if ties == "exclude" else (False, False)
    )


def test_negative_zero_ties_with_zero() -> None:
    student, teacher = torch.tensor([0.0, -0.0, 1.0]), torch.tensor([-0.0, 0.0, -0.0])
    assert ours(student, teacher, 0.5, "exclude")[0] == 0


@few
@given(st.integers(3, 20), st.integers(0, 2**32))
def test_included_ties_follow_a_margin_ranking_loss_with_labels_of_one(m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randint(12, (pairs(m),), generator=generator)
    student = clustered(pairs(m), seed, 0.05).requires_grad_()
    i, j = torch.triu_indices(pairs(m), pairs(m), offset=1)
    label = torch.where(teacher[i] > teacher[j], 1, -1)
    expected = F.margin_ranking_loss(student[i], student[j], label, margin=0.015)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    loss, gradient = ours(student.detach(), teacher.double(), 0.015, "include")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@few
@given(st.integers(3, 48), st.integers(0, 2**32), rules)
def test_a_float32_student_is_compared_and_summed_in_float64(m: int, seed: int, ties: Ties) -> None:
    student, teacher = (clustered(pairs(m), seed + k, 1e-3).float() for k in range(2))
    expected, expected_gradient = literal_matrix(student, teacher, 0.0005, ties)
    loss, gradient = ours(student, teacher, 0.0005, ties)
    assert loss.dtype == gradient.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize(("texts", "terms"), [(128, 33_028_128), (90, 8_018_010)])
def test_the_mean_is_over_all_pairs_of_pairs(texts: int, terms: int) -> None:
    teacher = torch.arange(pairs(texts), dtype=torch.float64)
    student = teacher.clone()
    student[[0, 1]] = student[[1, 0]]
    loss, gradient = ours(student, teacher, 0.0, "exclude")
    assert loss.item() == pytest.approx(1 / terms, rel=1e-12)
    assert gradient[:3].tolist() == [1 / terms, -1 / terms, 0]


def test_a_batch_of_1024_texts_needs_no_pair_by_pair_matrix() -> None:
    # The matrix would take 2 TB. In reverse order the mean difference of P steps is (P + 1)/3.
    size = pairs(1024)
    teacher = torch.arange(size, dtype=torch.float64)
    loss, gradient = ours(-teacher / size, teacher, 0.25, "exclude")
    assert loss.item() == pytest.approx((size + 1) / 3 / size + 0.25, rel=1e-12)
    steps = size - 1 - 2 * teacher
    torch.testing.assert_close(gradient, steps / (size * (size - 1) / 2), rtol=1e-12, atol=0)


def test_a_student_equal_to_its_teacher_pays_the_floor_below_the_margin() -> None:
    values = clustered(pairs(32), 5, 0.05)
    assert 0 < ours(values, values, 0.015, "exclude")[0] < 0.015
    assert ours(values, values, 0.0, "exclude")[0] == 0


@few
@given(st.integers(3, 40), st.integers(0, 2**32))
def test_renaming_the_pairs_renames_the_gradient(m: int, seed: int) -> None:
    student, teacher = clustered(pairs(m), seed, 0.05), clustered(pairs(m), seed + 1, 0.05)
    order = torch.randperm(pairs(m), generator=torch.Generator().manual_seed(seed))
    loss, gradient = ours(student, teacher, 0.015, "exclude")
    renamed_loss, renamed = ours(student[order], teacher[order], 0.015, "exclude")
    assert torch.equal(renamed, gradient[order])
    assert renamed_loss.item() == pytest.approx(loss.item(), rel=1e-12)


def test_only_the_order_of_the_teacher_matters_and_only_differences_of_the_student() -> None:
    student, teacher = clustered(pairs(24), 1, 0.05), clustered(pairs(24), 2, 0.05)
    loss, gradient = ours(student, teacher, 0.015, "exclude")
    stretched_loss, stretched = ours(student, teacher.exp() * 100, 0.015, "exclude")
    assert torch.equal(stretched_loss, loss)
    assert torch.equal(stretched, gradient)
    shifted_loss, _ = ours(student - 0.7, teacher, 0.015, "exclude")
    assert shifted_loss.item() == pytest.approx(loss.item(), rel=1e-10)


def test_gradients_sum_to_zero_and_scale_with_what_comes_in() -> None:
    student, teacher = clustered(pairs(24), 1, 0.05), clustered(pairs(24), 2, 0.05)
    _, gradient = ours(student, teacher, 0.015, "exclude")
    assert gradient.sum().abs() < 1e-15
    student.requires_grad_()
    (20 * relative_order_loss(student, TeacherOrder.of(teacher), 0.015)).backward()
    torch.testing.assert_close(student.grad, 20 * gradient, rtol=1e-15, atol=0)


def test_a_strided_student_is_read_as_its_values() -> None:
    student, teacher = clustered(pairs(24), 1, 0.05), clustered(pairs(24), 2, 0.05)
    strided = torch.stack([student, teacher], dim=1)
    loss = relative_order_loss(strided[:, 0], TeacherOrder.of(strided[:, 1]), 0.015)
    assert torch.equal(loss, ours(student, teacher, 0.015, "exclude")[0])


def test_a_student_with_a_nan_has_a_nan_loss() -> None:
    student = torch.tensor([0.1, float("nan"), 0.3])
    assert ours(student, torch.tensor([1.0, 2.0, 3.0]), 0.015, "exclude")[0].isnan()


def test_the_order_knows_ranks_and_tie_groups() -> None:
    order = TeacherOrder.of(torch.tensor([3.0, 1.0, 3.0, 2.0]))
    assert order.rank_P.tolist() == [2, 0, 3, 1]
    assert order.first_P.tolist() == [2, 0, 2, 1]
    assert order.end_P.tolist() == [4, 1, 4, 2]


def test_a_double_backward_is_refused() -> None:
    student = clustered(10, 1, 0.05).requires_grad_()
    loss = relative_order_loss(student, TeacherOrder.of(clustered(10, 2, 0.05)), 0.015)
    (gradient,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_wrong_shapes_and_unknown_rules_are_refused() -> None:
    order = TeacherOrder.of(torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"student has shape \(4,\), but the teacher ordered 3"):
        relative_order_loss(torch.zeros(4), order, 0.015)
    with pytest.raises(ValueError, match='must be "exclude" or "include", found \'drop\''):
        relative_order_loss(torch.zeros(3), order, 0.015, "drop")  # type: ignore[arg-type]
    for shape in [(1,), (0,), (3, 3)]:
        with pytest.raises(ValueError, match="expected a vector of 2 to"):
            TeacherOrder.of(torch.zeros(shape))
