from __future__ import annotations

import math

import pytest

from student.stages import (
    STAGES,
    LossWeights,
    StageError,
    check,
    learning_rate_at,
    stage,
    with_weights,
)

WIDTHS = {"fc1": 20, "fc2": 8, "fc3": 4, "fc4": 2}
PAPER = {"cosine": 10, "similarity": 200, "relative": 20, "margin": 0.015}


@pytest.mark.parametrize(
    ("number", "trains", "learning_rate", "steps"),
    [
        (1, ("fc1",), 1e-4, 4000),
        (2, ("fc1", "layers[-3:]"), 8e-5, 7000),
        (3, ("text", "heads"), 7e-5, 2200),
    ],
)
def test_table_has_the_papers_values(
    number: int, trains: tuple[str, ...], learning_rate: float, steps: int
) -> None:
    spec = STAGES[number]
    assert (spec.trains, spec.learning_rate, spec.steps, spec.batch_size) == (
        trains,
        learning_rate,
        steps,
        128,
    )
    assert spec.heads["fc1"].model_dump() == PAPER


def test_reduced_heads_of_stage_3_have_no_cosine_loss() -> None:
    reduced = {name: weights for name, weights in STAGES[3].heads.items() if name != "fc1"}
    assert set(reduced) == {"fc2", "fc3", "fc4"}
    assert all(weights.model_dump() == {**PAPER, "cosine": 0} for weights in reduced.values())


def test_every_stage_of_the_table_can_run() -> None:
    for spec in STAGES.values():
        check(spec, WIDTHS, target_width=20, rows=128)


def test_cosine_on_a_narrower_head_is_refused_with_the_reason() -> None:
    spec = stage(3, {"heads": {"fc2": {"cosine": 10}}})
    with pytest.raises(StageError, match=r"fc2 is 8 wide and its target 20.*vectors of one width"):
        check(spec, WIDTHS, target_width=20, rows=128)


def test_stage_without_enough_rows_is_refused() -> None:
    with pytest.raises(StageError, match="a batch of 128 texts, but only 127 rows"):
        check(STAGES[1], WIDTHS, target_width=20, rows=127)


def test_stage_whose_losses_are_all_off_is_refused() -> None:
    spec = with_weights(STAGES[1], {"cosine": 0, "similarity": 0, "relative": 0})
    with pytest.raises(StageError, match="nothing would be trained"):
        check(spec, WIDTHS, target_width=20, rows=128)


def test_head_that_the_student_lacks_is_refused() -> None:
    with pytest.raises(StageError, match="no head 'fc4'; it has fc1, fc2"):
        check(STAGES[3], {"fc1": 20, "fc2": 8, "fc3": 4}, target_width=20, rows=128)


def test_unknown_stage_and_unknown_field_are_refused_with_what_there_is() -> None:
    with pytest.raises(StageError, match="no stage 7; stages are 1, 2, 3"):
        stage(7)
    with pytest.raises(StageError, match="'learning_rat'; did you mean 'learning_rate'"):
        stage(1, {"learning_rat": 1})


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"learning_rate": -1}, {"trains": []}, {"warmup": 1.0}]
)
def test_bad_values_are_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(StageError, match=f"stage 1: {next(iter(changes))}"):
        stage(1, changes)


def test_weights_change_only_heads_that_had_the_loss() -> None:
    heads = with_weights(STAGES[3], {"cosine": 5, "relative": 0}).heads
    assert heads["fc1"] == LossWeights(cosine=5, similarity=200, relative=0)
    assert heads["fc2"] == LossWeights(cosine=0, similarity=200, relative=0)


def test_unknown_or_negative_weight_is_refused() -> None:
    with pytest.raises(StageError, match="no loss 'cosin'"):
        with_weights(STAGES[1], {"cosin": 1})
    with pytest.raises(StageError, match="weights of fc1: cosine"):
        with_weights(STAGES[1], {"cosine": -1})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_warms_up_linearly_and_follows_its_schedule(schedule: str) -> None:
    spec = stage(1, {"steps": 100, "warmup": 0.1, "schedule": schedule, "learning_rate": 2.0})
    rates = [learning_rate_at(spec, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    halfway = {"cosine": 1.0, "linear": 1.0, "constant": 2.0}[schedule]
    last = {
        "cosine": 1 + math.cos(math.pi * 89 / 90),
        "linear": 2.0 / 90,
        "constant": 2.0,
    }[schedule]
    assert rates[55] == pytest.approx(halfway)
    assert rates[-1] == pytest.approx(last)
