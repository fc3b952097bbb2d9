"""The losses against float64 oracles, and what must not change them."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.losses import (
    TeacherBatch,
    combined_loss,
    cosine_loss,
    relative_similarity_loss,
    similarity_loss,
)

Loss = Callable[[Tensor, Tensor | TeacherBatch], Tensor]
LOSSES: list[Loss] = [cosine_loss, similarity_loss, relative_similarity_loss]
few: Callable[..., Any] = settings(derandomize=True, deadline=None, database=None, max_examples=25)
each_loss = pytest.mark.parametrize("loss", LOSSES)


def vectors(texts: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of any length that share a direction, as embeddings do: cosines around 0.7."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(texts, width, generator=generator, dtype=torch.float64)
    common = torch.randn(1, width, generator=generator, dtype=torch.float64)
    length = 0.5 + torch.rand(texts, 1, generator=generator, dtype=torch.float64)
    return (length * (1.5 * common + noise)).to(dtype)


def cosines(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    return unit @ unit.T


def cosine_oracle(student: Tensor, teacher: Tensor) -> Tensor:
    losses = [1 - s.dot(t) / s.norm() / t.norm() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(losses).mean()


def similarity_oracle(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(cosines(student), cosines(teacher))


def relative_oracle(student: Tensor, teacher: Tensor, margin: float = 0.015) -> Tensor:
    """The literal form: every pair of texts against every other, differentiated by autograd."""
    i, j = torch.tensor(list(combinations(range(len(student)), 2))).T
    s, t = cosines(student)[i, j], cosines(teacher)[i, j]
    hinge = (s[None, :] - s[:, None] + margin).clamp_min(0)
    terms = len(s) * (len(s) - 1) / 2
    return hinge[t[:, None] > t[None, :]].sum() / terms


ORACLES = list(zip(LOSSES, [cosine_oracle, similarity_oracle, relative_oracle], strict=True))


def value_and_gradient(
    loss: Loss, student: Tensor, teacher: Tensor | TeacherBatch
) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


@few
@given(st.integers(3, 48), st.integers(2, 24), st.integers(0, 2**32), st.sampled_from(ORACLES))
def test_values_and_gradients_equal_the_oracles(
    texts: int, width: int, seed: int, pair: tuple[Loss, Loss]
) -> None:
    loss, oracle = pair
    student, teacher = vectors(texts, width, seed), vectors(texts, width, seed + 1)
    expected, expected_gradient = value_and_gradient(oracle, student, teacher)
    value, gradient = value_and_gradient(loss, student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("loss", "oracle"), ORACLES[1:])
def test_widths_of_student_and_teacher_may_differ(loss: Loss, oracle: Loss) -> None:
    student, teacher = vectors(20, 6, 1), vectors(20, 40, 2)
    expected, expected_gradient = value_and_gradient(oracle, student, teacher)
    value, gradient = value_and_gradient(loss, student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


def test_small_examples_by_hand() -> None:
    right, up = [1.0, 0.0], [0.0, 1.0]
    same, opposite = torch.tensor([right, up]), torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
    assert cosine_loss(same, same) == 0
    assert cosine_loss(same, opposite) == 2
    # One off-diagonal cosine is 1 instead of 0, twice in four entries.
    assert similarity_loss(torch.tensor([right, right]), same) == 0.5
    # Teacher: the first two texts are closest, the other two pairs tie. Student: the last two are.
    teacher, student = torch.tensor([right, right, up]), torch.tensor([right, up, up])
    # Two ordered terms of three: (12 above 13) ties in the student, (12 above 23) is upside down.
    assert relative_similarity_loss(student, teacher, margin=0.25) == (0.25 + 1.25) / 3
    # With ties included (13 against 23) the later one counts as higher, and it is.
    assert relative_similarity_loss(student, teacher, 0.25, ties="include") == (0.25 + 1.25) / 3
    flipped = torch.tensor([up, right, up])
    assert relative_similarity_loss(flipped, teacher, 0.25) == (1.25 + 0.25) / 3
    assert relative_similarity_loss(flipped, teacher, 0.25, "include") == (1.25 + 0.25 + 1.25) / 3


@pytest.mark.parametrize("focus", [0.05, 0.3])
def test_with_a_focus_near_pairs_count_by_the_exponential_of_their_cosine(focus: float) -> None:
    student, teacher = vectors(6, 4, seed=0), vectors(6, 7, seed=1)
    own, target = cosines(student), cosines(teacher)
    total = weight = 0.0
    for x in range(6):
        for y in range(6):
            if x != y:
                counts = math.exp(target[x, y].item() / focus)
                total += counts * (own[x, y] - target[x, y]).item() ** 2
                weight += counts
    found = similarity_loss(student, teacher, focus)
    assert found.item() == pytest.approx(total / weight, rel=1e-12)
    assert found.item() != pytest.approx(similarity_loss(student, teacher).item(), rel=1e-3)


def test_a_wide_focus_counts_all_pairs_alike() -> None:
    student, teacher = vectors(5, 4, seed=2), vectors(5, 4, seed=3)
    plain = similarity_loss(student, teacher) * 25 / 20  # Eq. 2 counts the diagonal, which is 0
    assert similarity_loss(student, teacher, 1e9).item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_focus_much_narrower_than_the_similarities_is_still_a_number() -> None:
    student, teacher = vectors(5, 4, seed=2, dtype=torch.float32), vectors(5, 4, seed=3)
    assert torch.isfinite(similarity_loss(student, teacher, 1e-4))


@pytest.mark.parametrize("loss", LOSSES[:2])
def test_gradcheck(loss: Loss) -> None:
    student, teacher = vectors(6, 5, 1).requires_grad_(), vectors(6, 5, 2)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)


@each_loss
def test_the_order_of_the_texts_does_not_matter(loss: Loss) -> None:
    student, teacher = vectors(30, 12, 1), vectors(30, 12, 2)
    shuffle = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    value, gradient = value_and_gradient(loss, student, teacher)
    shuffled, shuffled_gradient = value_and_gradient(loss, student[shuffle], teacher[shuffle])
    torch.testing.assert_close(shuffled, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(shuffled_gradient, gradient[shuffle], rtol=1e-10, atol=1e-15)


@each_loss
def test_the_length_of_the_vectors_does_not_matter(loss: Loss) -> None:
    student, teacher = vectors(30, 12, 1), vectors(30, 12, 2)
    lengths = torch.linspace(0.01, 100, 30, dtype=torch.float64)[:, None]
    expected = loss(student, teacher)
    torch.testing.assert_close(
        loss(student * lengths, teacher / lengths), expected, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_a_rotated_student_has_the_same_similarities(loss: Loss) -> None:
    student, teacher = vectors(30, 12, 1), vectors(30, 12, 2)
    rotation, _ = torch.linalg.qr(vectors(12, 12, 3))
    torch.testing.assert_close(
        loss(student @ rotation, teacher), loss(student, teacher), rtol=1e-12, atol=0
    )


def test_a_student_equal_to_its_teacher_pays_only_the_floor_of_the_margin() -> None:
    x = vectors(30, 12, 1)
    assert cosine_loss(x, x).abs() < 1e-15
    assert similarity_loss(x, x) == 0
    assert 0 < relative_similarity_loss(x, x, margin=0.015) < 0.015
    assert relative_similarity_loss(x, x, margin=0.0) == 0


@each_loss
@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype", "result"),
    [
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float16, torch.float64),
    ],
)
def test_results_are_float32_or_wider(
    loss: Loss, student_dtype: torch.dtype, teacher_dtype: torch.dtype, result: torch.dtype
) -> None:
    student, teacher = vectors(9, 8, 1, student_dtype), vectors(9, 8, 2, teacher_dtype)
    value, gradient = value_and_gradient(loss, student, teacher)
    assert value.dtype == result
    assert gradient.dtype == student_dtype
    # Narrow values are widened first: no other rounding than that of the input.
    widened, _ = value_and_gradient(loss, student.double(), teacher.double())
    torch.testing.assert_close(value.double(), widened, rtol=1e-5, atol=1e-7)


@each_loss
def test_neither_autocast_nor_the_matmul_precision_changes_a_bit(loss: Loss) -> None:
    # Large enough for the CPU's library to take another kernel where it is allowed to.
    student, teacher = (vectors(96, 512, seed, torch.float32) for seed in (1, 2))
    value, gradient = value_and_gradient(loss, student, teacher)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            autocast = loss(student.requires_grad_(), teacher)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert autocast.dtype == torch.float32
    assert torch.equal(autocast, value)
    (autocast_gradient,) = torch.autograd.grad(autocast, student)
    assert torch.equal(autocast_gradient, gradient)


@each_loss
def test_the_teacher_gets_no_gradient(loss: Loss) -> None:
    student, teacher = vectors(9, 8, 1).requires_grad_(), vectors(9, 8, 2).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@each_loss
def test_a_shared_teacher_batch_gives_every_head_the_plain_result(loss: Loss) -> None:
    teacher = vectors(40, 64, 1, torch.float16)
    shared = TeacherBatch(teacher)
    for seed in (2, 3):
        head = vectors(40, 64, seed, torch.float32)
        value, gradient = value_and_gradient(loss, head, shared)
        plain_value, plain_gradient = value_and_gradient(loss, head, teacher)
        assert torch.equal(value, plain_value)
        assert torch.equal(gradient, plain_gradient)


def test_a_teacher_batch_sorts_once() -> None:
    shared = TeacherBatch(vectors(9, 8, 1))
    assert shared.order is shared.order
    assert shared.similarity_BB is shared.similarity_BB
    assert shared.unit_BT is shared.unit_BT


def test_the_combined_loss_is_the_weighted_sum_of_its_parts() -> None:
    student, teacher = vectors(20, 8, 1), vectors(20, 8, 2)
    weights = {"cosine": 10.0, "similarity": 200.0, "relative": 20.0}
    alone = [value_and_gradient(loss, student, teacher) for loss in LOSSES]
    student.requires_grad_()
    total, parts = combined_loss(student, teacher, **weights, margin=0.015)
    total.backward()
    assert list(parts) == list(weights)
    for (value, _), part in zip(alone, parts.values(), strict=True):
        assert torch.equal(part, value)
        assert not part.requires_grad
    expected = sum(w * value for w, (value, _) in zip(weights.values(), alone, strict=True))
    torch.testing.assert_close(total.detach(), expected, rtol=1e-14, atol=0)
    gradient = sum(w * grad for w, (_, grad) in zip(weights.values(), alone, strict=True))
    torch.testing.assert_close(student.grad, gradient, rtol=1e-12, atol=1e-15)


def test_the_combined_loss_passes_margin_and_ties_on() -> None:
    student, teacher = vectors(6, 4, 1), torch.ones(6, 4)
    for ties in ("exclude", "include"):
        total, _ = combined_loss(
            student, teacher, cosine=0, similarity=0, relative=2, margin=0.3, ties=ties
        )
        assert total == 2 * relative_similarity_loss(student, teacher, 0.3, ties)
        assert (total == 0) == (ties == "exclude")


def test_the_combined_loss_passes_the_focus_on() -> None:
    student, teacher = vectors(6, 4, 1), vectors(6, 4, 2)
    total, parts = combined_loss(
        student, teacher, cosine=0, similarity=3, relative=0, margin=0, focus=0.1
    )
    assert parts["similarity"] == similarity_loss(student, teacher, 0.1)
    assert total == 3 * parts["similarity"]


def test_a_loss_of_weight_zero_is_neither_computed_nor_reported() -> None:
    student, teacher = vectors(2, 4, 1), TeacherBatch(vectors(2, 9, 2))
    # Neither the widths (cosine) nor the two texts (relative) would do.
    total, parts = combined_loss(
        student, teacher, cosine=0, similarity=200, relative=0, margin=0.015
    )
    assert parts == {"similarity": similarity_loss(student, teacher)}
    assert total == 200 * parts["similarity"]
    assert "order" not in vars(teacher)
    with pytest.raises(ValueError, match="all weights are 0"):
        combined_loss(student, teacher, cosine=0, similarity=0, relative=0, margin=0.015)


@each_loss
def test_inputs_that_do_not_fit_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match="student has 5 rows, teacher 4"):
        loss(torch.ones(5, 8), torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"student: expected floating .* shape \(8,\)"):
        loss(torch.ones(8), torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"teacher: expected floating .* torch\.int64"):
        loss(torch.ones(4, 8), torch.ones(4, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one row"):
        loss(torch.ones(0, 8), torch.ones(0, 8))


def test_batches_without_anything_to_compare_are_refused() -> None:
    assert cosine_loss(torch.ones(1, 8), torch.ones(1, 8)).abs() < 1e-6
    with pytest.raises(ValueError, match=r"similarity loss .* needs 2 or more a batch, found 1"):
        similarity_loss(torch.ones(1, 8), torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"relative loss .* needs 3 or more a batch, found 2"):
        relative_similarity_loss(torch.ones(2, 8), torch.ones(2, 8))
    with pytest.raises(ValueError, match="needs 3 or more a batch, found 2"):
        combined_loss(
            torch.ones(2, 8), torch.ones(2, 8), cosine=1, similarity=1, relative=1, margin=0.015
        )


def test_a_cosine_between_different_widths_is_refused_with_both_and_the_reason() -> None:
    student, teacher = torch.ones(4, 512), torch.ones(4, 12_288)
    message = "student is 512 wide, teacher 12288; a cosine needs one width"
    with pytest.raises(ValueError, match=message):
        cosine_loss(student, teacher)
    with pytest.raises(ValueError, match=message):
        combined_loss(student, teacher, cosine=10, similarity=200, relative=20, margin=0.015)
