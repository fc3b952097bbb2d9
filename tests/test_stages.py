from __future__ import annotations

import math

import pytest

from student.schedule import learning_rate_at
from student.stage_checks import check, check_processes
from student.stage_fields import fields
from student.stages import STAGES, LossWeights, StageError, StageSpec, stage, with_weights

WIDTHS = {"fc1": 20, "fc2": 8, "fc3": 4, "fc4": 2}
PAPER = {
    "cosine": 10,
    "similarity": 200,
    "focus": None,
    "relative": 20,
    "margin": 0.015,
    "ties": "exclude",
    "contrastive": 0,
    "temperature": 0.05,
    "target": ("teachers",),
    "share": 1,
}
TEACHERS = ("stella", "nv")


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


def test_stage_4_has_the_papers_values() -> None:
    spec = STAGES[4]
    assert (spec.trains, spec.learning_rate, spec.steps, spec.batch_size) == (
        ("vision",),
        1e-4,
        3500,
        90,
    )
    assert (spec.reads, spec.total) == ("images", "mean")
    assert list(spec.heads) == ["fc1", "fc2", "fc3", "fc4"]
    for weights in spec.heads.values():
        assert weights.model_dump() == {**PAPER, "target": ("captions",)}


def test_reduced_heads_of_stage_3_have_no_cosine_loss() -> None:
    reduced = {name: weights for name, weights in STAGES[3].heads.items() if name != "fc1"}
    assert set(reduced) == {"fc2", "fc3", "fc4"}
    assert all(weights.model_dump() == {**PAPER, "cosine": 0} for weights in reduced.values())


def test_every_stage_of_the_table_can_run() -> None:
    for spec in STAGES.values():
        check(spec, WIDTHS, target_width=20, rows=128, teachers=TEACHERS)


def test_cosine_on_a_narrower_head_is_refused_with_the_reason() -> None:
    spec = stage(3, {"heads": {"fc2": {"cosine": 10}}})
    with pytest.raises(StageError, match=r"fc2 is 8 wide and its target 20.*vectors of one width"):
        check(spec, WIDTHS, target_width=20, rows=128, teachers=TEACHERS)


def test_stage_without_enough_rows_is_refused() -> None:
    with pytest.raises(StageError, match="a batch of 128 texts, but only 127 rows"):
        check(STAGES[1], WIDTHS, target_width=20, rows=127, teachers=TEACHERS)


def test_stage_whose_losses_are_all_off_is_refused() -> None:
    off = {"cosine": 0, "similarity": 0, "relative": 0}
    with pytest.raises(StageError, match="nothing would be trained"):
        with_weights({1: STAGES[1]}, off)
    with pytest.raises(StageError, match="nothing would be trained"):
        stage(1, {"heads": {"fc1": off}})


def test_head_that_the_student_lacks_is_refused() -> None:
    with pytest.raises(StageError, match="no head 'fc4'; it has fc1, fc2"):
        check(
            STAGES[3], {"fc1": 20, "fc2": 8, "fc3": 4}, target_width=20, rows=128, teachers=TEACHERS
        )


def test_unknown_stage_and_unknown_field_are_refused_with_what_there_is() -> None:
    with pytest.raises(StageError, match="no stage 7; stages are 1, 2, 3"):
        stage(7)
    with pytest.raises(StageError, match="'learning_rat'; did you mean 'learning_rate'"):
        stage(1, {"learning_rat": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"learning_rate": -1},
        {"trains": []},
        {"warmup": 1.0},
        {"betas": [0.9, 1.0]},
        {"weight_decay": math.inf},
    ],
)
def test_bad_values_are_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(StageError, match=f"stage 1: {next(iter(changes))}"):
        stage(1, changes)


def test_weights_change_only_heads_that_had_the_loss() -> None:
    heads = with_weights({3: STAGES[3]}, {"cosine": 5, "relative": 0})[3].heads
    assert heads["fc1"] == LossWeights(cosine=5, similarity=200, relative=0)
    assert heads["fc2"] == LossWeights(cosine=0, similarity=200, relative=0)


def test_unknown_or_negative_weight_is_refused() -> None:
    with pytest.raises(StageError, match="no loss 'cosin'"):
        with_weights({1: STAGES[1]}, {"cosin": 1})
    with pytest.raises(StageError, match="weights of fc1: cosine"):
        with_weights({1: STAGES[1]}, {"cosine": -1})


def test_a_weight_that_no_head_takes_is_refused_and_a_margin_is_taken_by_all() -> None:
    plain = stage(2, {"heads": {"fc1": {"similarity": 0, "relative": 0, "margin": 0}}})
    expected = r"similarity would change nothing.* give it .* stages\.2\.heads\.fc1\.similarity"
    with pytest.raises(StageError, match=expected):
        with_weights({2: plain}, {"similarity": 200})
    assert with_weights({2: plain}, {"similarity": 0})[2] == plain
    assert with_weights({2: plain}, {"margin": 0.1})[2].heads["fc1"].margin == 0.1
    assert with_weights({2: plain, 3: STAGES[3]}, {"similarity": 5})[2] == plain


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"heads": {"fc1[:20]": {"similarity": 1}}},
            "fc1[:20] is no part of fc1, which is 20 wide",
        ),
        ({"heads": {"fc2[:9]": {"relative": 1}}}, "fc2[:9] is no part of fc2, which is 8 wide"),
        ({"heads": {"fc9[:4]": {"relative": 1}}}, "the student has no head 'fc9'; it has fc1, fc2"),
        ({"heads": {"fc1[4:]": {"relative": 1}}}, "'fc1[4:]' is no head: expected a name like fc2"),
        ({"heads": {"fc1[:0]": {"relative": 1}}}, "'fc1[:0]' is no head"),
        ({"heads": {"fc1[:8]": {"cosine": 1}}}, "fc1[:8] is 8 wide and its target 20: the cosine"),
        ({"heads": {"fc2": {"cosine": 1, "target": "fc1"}}}, "fc2 is 8 wide and its target 20"),
        ({"heads": {"fc1": {"target": "fc1"}}}, "fc1 cannot learn from itself"),
        ({"closed_form": ["fc9"]}, "closed_form names 'fc9'; the student has fc1, fc2, fc3, fc4"),
        (
            {"closed_form": {"fc1": "fitted"}},
            "fc1 can begin as ridge, copy or identity, not as fitted",
        ),
        ({"closed_form": {"fc2": "copy"}}, "fc2 can begin as principal or fitted, not as copy"),
        (
            {"closed_form": {"fc2": "identity"}},
            "fc2 can begin as principal or fitted, not as identity",
        ),
        (
            {"closed_form": {"fc1": "principal"}},
            "fc1 can begin as ridge, copy or identity, not as principal",
        ),
        ({"teacher_weights": {"stela": 2}}, "names 'stela'; the cache holds stella, nv"),
        ({"micro_batch": 7}, "micro_batch is 7, which does not divide a batch of 128"),
    ],
    ids=str,
)
def test_impossible_stage_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StageError) as refused:
        check(stage(3, changes), WIDTHS, target_width=20, rows=128, teachers=TEACHERS)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": {"fc1[:19]": {"similarity": 1}, "fc2[:1]": {"relative": 1, "target": "fc1"}}},
        {"heads": {"fc2": {"target": ["teachers", "fc1"]}}},
        {"teacher_weights": {"nv": 0.5}},
        {"closed_form": {"fc1": "copy", "fc2": "principal"}},
        {"micro_batch": 128},
    ],
    ids=str,
)
def test_possible_stage_is_not(changes: dict[str, object]) -> None:
    check(stage(3, changes), WIDTHS, target_width=20, rows=128, teachers=TEACHERS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"heads": {"fc2": {"share": 0}}}, "heads.fc2.share"),
        ({"heads": {"fc2": {"target": "fc2"}}}, "heads.fc2.target"),
        ({"heads": {"fc2": {"target": []}}}, "heads.fc2.target"),
        ({"heads": {"fc2": {"ties": "both"}}}, "heads.fc2.ties"),
        ({"heads": {"fc2": {"similarty": 1}}}, "heads.fc2.similarty"),
        ({"heads": {"fc2": 3}}, "heads.fc2"),
        ({"heads": 3}, "heads"),
        ({"teacher_weights": {"nv": 0}}, "teacher_weights.nv"),
        ({"vector_dropout": 1}, "vector_dropout"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"closed_form": "fc1"}, "closed_form"),
        ({"closed_form": 3}, "closed_form"),
        ({"closed_form": {"fc1": "pca"}}, "closed_form.fc1"),
        ({"schedule": "step"}, "schedule"),
        ({"steps": math.inf}, "steps"),
        ({"learning_rate": math.nan}, "learning_rate"),
    ],
    ids=str,
)
def test_bad_values_of_options_are_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(StageError, match=rf"stage 3: {field}\b"):
        stage(3, changes)


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 3, "a global batch of 128 does not divide among 3 processes"),
        ({"micro_batch": 64}, 4, "does not divide the 32 texts of each of 4 processes"),
        (
            {"gather": False},
            64,
            "each of 64 processes has losses over its own 2 texts; they need 3",
        ),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused(
    changes: dict[str, object], processes: int, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        check_processes(stage(3, changes), processes)
    check_processes(stage(3, changes), 2)


def test_heads_of_a_recipe_change_weight_by_weight() -> None:
    off = {"similarity": 0, "relative": 0}
    heads = stage(
        3, {"heads": {"fc2": {"share": 0.5}, "fc3": off, "fc1[:8]": {"relative": 1}}}
    ).heads
    assert heads["fc2"] == LossWeights(similarity=200, relative=20, share=0.5)
    assert list(heads) == ["fc1", "fc2", "fc4", "fc1[:8]"]
    assert heads["fc1"] == STAGES[3].heads["fc1"]


def test_weights_leave_out_a_head_that_has_no_loss_left() -> None:
    changed = with_weights({3: STAGES[3]}, {"similarity": 0, "relative": 0})
    assert list(changed[3].heads) == ["fc1"]


def test_closed_forms_may_be_named_or_only_listed() -> None:
    named = stage(1, {"closed_form": {"fc1": "ridge", "fc2": "principal"}})
    assert named == stage(1, {"closed_form": ["fc1", "fc2"]})


def test_fields_that_only_save_memory_are_no_part_of_the_outcome() -> None:
    spec = stage(1, {"micro_batch": 4, "gradient_checkpointing": True})
    assert spec.outcome() == stage(1).outcome()
    assert stage(1, {"gather": False}).outcome() != stage(1).outcome()


def test_every_field_of_a_stage_says_what_it_is() -> None:
    rows = fields()
    assert all(meaning for _, _, meaning in rows)
    names = {name for name, _, _ in rows}
    assert set(StageSpec.model_fields) <= names
    assert {f"heads.NAME.{name}" for name in LossWeights.model_fields} <= names
