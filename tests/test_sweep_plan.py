"""What a sweep file means: its arms, the stage runs they need and share, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cli.recipe import load as load_recipe
from student.evaluation.retention import Recall, Retention
from student.spec import StudentSpec
from student.stages import stage, with_weights
from student.sweep.plan import Base, Plan, Source, plan
from student.sweep.spec import FIGURES, Sweep, SweepError, load
from teacher_cache.teachers import resolve

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "recipes" / "sweeps").glob("*.toml"))
SOURCE = Source("0123", {"left": 12, "right": 8}, rows=200, held_out=40)
BASE = Base(
    StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4, "fc4": 3}),
    {1: {"batch_size": 16}, 2: {"batch_size": 16}, 3: {"batch_size": 16}},
)
TWO = """
question = "which?"
baseline = "a"
seeds = [3, 5]
[[arms]]
name = "a"
[[arms]]
name = "b"
"""


def read(text: str, folder: Path) -> Sweep:
    file = folder / "sweep.toml"
    file.write_text(text)
    return load(file)


def planned(text: str, folder: Path, **changes: Any) -> Plan:
    return plan(read(text, folder), BASE, SOURCE, folder / "out", **changes)


def stages_of(made: Plan, arm: str, seed: int) -> list[Any]:
    return [made.stages[key].run for key in made.chain(made.ends[arm][seed])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_in_recipes_can_be_planned(path: Path, tmp_path: Path) -> None:
    sweep = load(path)
    assert sweep.recipe is not None
    recipe, _ = load_recipe(path.parent / sweep.recipe)
    widths = {spec.name: resolve(spec).width or 384 for spec in recipe.teachers}
    source = Source("0123", widths, rows=9000, held_out=900)
    made = plan(sweep, Base(recipe.student, recipe.stages), source, tmp_path)
    arms = [arm.name for arm in made.arms]
    assert len(arms) >= 3
    assert set(made.ends) == set(arms)
    asked = [key for arm in arms for key in made.chains(arm)]
    assert len(made.stages) == len(set(asked)) <= len(asked)
    for arm in made.arms:
        for key in made.ends[arm.name].values():
            assert made.vectors(arm, key)
            assert len(made.arms_of(key)) == 1, "each arm of these ends apart"


def test_the_sweeps_of_the_paper_train_as_many_stages_as_they_say(tmp_path: Path) -> None:
    counts = {}
    for path in FILES:
        sweep = load(path)
        assert sweep.recipe is not None
        recipe, _ = load_recipe(path.parent / sweep.recipe)
        widths = {spec.name: resolve(spec).width or 384 for spec in recipe.teachers}
        source = Source("0123", widths, rows=9000, held_out=900)
        made = plan(sweep, Base(recipe.student, recipe.stages), source, tmp_path)
        counts[path.stem] = len(made.stages)
    # Three seeds each: heads share stages 1 and 2, margin too, stages share stage 1 of two arms.
    assert counts == {
        "heads": 3 * (2 + 5),
        "losses": 3 * 15,
        "losses-demo": 3 * (1 + 4),
        "margin": 3 * (2 + 9),
        "stages": 3 * (3 + 2 + 1 + 1),
        "starts": 3 * 6,
        "teachers": 3 * 12,
    }


def test_sweeps_that_the_docs_give_as_examples_can_be_planned(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text()
    whole, grid = re.findall(r"```toml\n(.*?)```", page, re.S)
    made = planned(whole, tmp_path)
    assert [arm.name for arm in made.arms] == ["as it is", "without relative"]
    assert made.measured(made.ends["as it is"][0]) == ("fc1", "fc2")
    assert len(planned('question = "?"\n' + grid, tmp_path).arms) == 9
    for path in FILES:
        assert f"`{path.name}`" in page


def test_what_is_equal_is_one_stage_run(tmp_path: Path) -> None:
    made = planned(TWO + "change.stages.3.steps = 9\n", tmp_path)
    for seed in (3, 5):
        a, b = stages_of(made, "a", seed), stages_of(made, "b", seed)
        assert [one is two for one, two in zip(a, b, strict=True)] == [True, True, False]
        assert [run.seed for run in a] == [seed] * 3
        assert (a[2].spec.steps, b[2].spec.steps) == (2200, 9)
    assert len(made.stages) == 2 * 4


def test_a_change_of_an_early_stage_parts_all_later_ones(tmp_path: Path) -> None:
    made = planned(TWO + "change.stages.1.steps = 9\n", tmp_path)
    assert len(made.stages) == 2 * 6
    late = [stages_of(made, arm, 3)[2] for arm in ("a", "b")]
    assert late[0].spec == late[1].spec
    assert late[0].out != late[1].out


@pytest.mark.parametrize(
    "change",
    [
        "change.stages.1.steps = 9",
        "change.student.max_tokens = 24",
        'change.teachers = ["left"]',
        'change.teachers = ["right", "left"]',
        "change.weights.margin = 0.1",
        "change.stages.1.heads.fc1.relative = 1",
    ],
)
def test_whatever_decides_the_outcome_is_part_of_the_key(change: str, tmp_path: Path) -> None:
    made = planned(TWO + change, tmp_path)
    firsts = {run.out.name for arm in "ab" for s in (3, 5) for run in stages_of(made, arm, s)[:1]}
    assert len(firsts) == 4
    other = planned(TWO + change, tmp_path, precision="fp32")
    assert not set(other.stages) & set(made.stages)


def test_fields_that_only_save_memory_are_no_part_of_the_key(tmp_path: Path) -> None:
    made = planned(TWO + "change.stages.1.micro_batch = 4", tmp_path)
    assert len(made.stages) == 2 * 3


def test_stages_start_as_the_plain_command_would_have_them(tmp_path: Path) -> None:
    text = TWO + 'change.run = [2, 3]\n[[arms]]\nname = "c"\nchange.run = [1, 3]\n'
    made = planned(text, tmp_path)
    whole, merged, skipping = (stages_of(made, arm, 3) for arm in "abc")
    assert [run.init_from for run in whole] == [None, None, None]
    assert [(run.stage, run.init_from) for run in merged] == [(2, "fresh"), (3, None)]
    assert skipping[0] is whole[0]
    assert skipping[1].init_from == str(tmp_path / "out/runs" / whole[0].out.name / "stage-1")
    assert len({run.out for run in (*whole, *merged, *skipping)}) == 6


def test_changes_mean_what_they_mean_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    text = TWO + (
        "change.weights = { relative = 0, margin = 0.1 }\n"
        'change.stages.3.heads.fc2.target = "fc1"\n'
        'change.stages.3.heads."fc1[:5]" = { similarity = 3 }\n'
        'change.student.layers = [0, 2]\nchange.teachers = ["right"]\n'
        "[change.stages]\n3.steps = 7\n"
    )
    run = stages_of(planned(text, tmp_path), "b", 3)[2]
    changes = {"fc2": {"target": "fc1"}, "fc1[:5]": {"similarity": 3}}
    expected = stage(3, {"batch_size": 16, "steps": 7, "heads": changes})
    assert run.spec == with_weights({3: expected}, {"relative": 0, "margin": 0.1})[3]
    assert run.student == BASE.student.model_copy(update={"layers": (0, 2)})
    assert run.teachers == ("right",)
    assert stages_of(planned(text, tmp_path), "a", 3)[2].spec.steps == 7


def test_a_weight_may_be_of_a_loss_that_only_some_stage_of_an_arm_has(tmp_path: Path) -> None:
    text = TWO + ("change.weights.contrastive = 7\nchange.stages.2.heads.fc1.contrastive = 1\n")
    runs = stages_of(planned(text, tmp_path), "b", 3)
    assert [run.spec.heads["fc1"].contrastive for run in runs] == [0, 7, 0]


def test_a_grid_has_an_arm_for_every_combination_named_by_its_values(tmp_path: Path) -> None:
    text = """
question = "which?"
baseline = "steps=2, relative=20, run=1"
[grid]
stages.1.steps = [2, 3]
stages.1.heads.fc1.relative = [0, 20]
run = [[1], [1, 2]]
"""
    made = planned(text, tmp_path)
    assert len(made.arms) == 8
    assert made.arms[-1].name == "steps=3, relative=20, run=1+2"
    # Run by run: four of stage 1 (shared by both lengths of a run), four of stage 2.
    assert len(made.stages) == 3 * 8
    assert made.measured(made.ends["steps=2, relative=20, run=1"][0]) == ("fc1",)


def test_a_vector_may_be_measured_in_place_of_a_head(tmp_path: Path) -> None:
    text = TWO + 'in_place_of = { fc2 = "fc1[:6]" }\n[measure]\nheads = ["fc1", "fc2"]\n'
    made = planned(text, tmp_path)
    assert made.measured(made.ends["a"][3]) == ("fc1", "fc2", "fc1[:6]")
    shown = [made.vectors(arm, made.ends[arm.name][3]) for arm in made.arms]
    assert shown == [{"fc1": "fc1", "fc2": "fc2"}, {"fc1": "fc1", "fc2": "fc1[:6]"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quesion = 1", r"unknown key quesion; did you mean 'question'\?"),
        (TWO + "chnge.run = [1]", r"unknown key arms\.1\.chnge; did you mean 'change'\?"),
        ('baseline = "a"', r"question is missing"),
        (TWO + "change.stages.1.step = 9", r"arm 'b': stage 1 has no field 'step'; .* 'steps'\?"),
        (TWO + "change.student.layrs = 9", r"arm 'b': .*no field 'layrs'; did you mean 'layers'\?"),
        (TWO + "change.stage.1.steps = 9", r"no 'stage' to change; .* did you mean 'stages'\?"),
        (TWO + 'change."stages.1.steps" = 9', r"write stages\.1\.steps without quotes"),
        (TWO + "change.stages.1 = 9", r"stages\.1 is no field but a table: expected stages\.1\.FI"),
        (TWO + "change.seed = 9", r"seeds are not changed by an arm"),
        (TWO + "change.weights.relativ = 9", r"arm 'b': there is no loss 'relativ'"),
        (
            TWO + "change.weights.contrastive = 9",
            r"arm 'b': the weight of contrastive would change .* stages\.1\.heads\.fc1\.contr",
        ),
        (TWO + "change.stages.1.steps = 0", r"arm 'b': stage 1: steps: .* greater than 0"),
        (TWO + "change.stages.1.batch_size = 500", r"arm 'b': a batch of 500 texts, but only 200"),
        (TWO + "change.stages.3.heads.fc2.cosine = 1", r"arm 'b': fc2 is 6 wide and its target 20"),
        (TWO + "change.stages.9.steps = 1", r"arm 'b': stages\.9\.steps changes nothing"),
        (TWO + "change.run = [1, 9]", r"arm 'b': there is no stage 9"),
        (TWO + "change.run = [1, 4]", r"arm 'b': a sweep trains and measures on texts"),
        (TWO + "change.run = [2, 1]", r"run is a list of stages in ascending order"),
        (TWO + 'change.teachers = ["lefd"]', r"no teacher 'lefd'; .* did you mean 'left'\?"),
        (TWO + 'change.teachers = [["left"]]', r"teachers is a list of different names"),
        (TWO + "change.teachers = []", r"teachers is a list of different names"),
        (TWO + "change.student.max_tokens = 0", r"arm 'b': student\.max_tokens: "),
        (TWO + 'in_place_of.fc2 = "fc1[:99]"', r"arm 'b': fc1\[:99\] is no part of fc1"),
        (TWO + '[[arms]]\nname = "a"', r"two arms are named 'a' and 'a'"),
        (TWO + '[[arms]]\nname = "A "', r"two arms are named 'a' and 'A '"),
        (TWO.replace('baseline = "a"', 'baseline = "c"'), r"baseline 'c' is none of .*: 'a', 'b'"),
        (TWO.replace("[3, 5]", "[3, 3]"), r"a seed stands twice"),
        (TWO.replace("[3, 5]", "[]"), r"seeds: .* at least 1 item"),
        ('question = "?"\nbaseline = "a"', r"a sweep needs arms"),
        (TWO + "[grid]\nrun = 3", r"grid: run is a list of values to try"),
        (TWO + '[measure]\nheads = ["fc1", "fc9"]', r"heads names 'fc9', which no arm trains"),
        (
            TWO + 'change.run = [1]\n[measure]\nheads = ["fc2", "fc3"]',
            r"arm 'b' trains none of measure\.heads \(fc2, fc3\); say with in_place_of what",
        ),
        (TWO + '[measure]\nteachers = ["all teacher"]', r"did you mean 'all teachers'\?"),
        (
            TWO + '[measure]\nfigures = ["order"]',
            r"figures names 'order'; there is cosine, spearman",
        ),
        (TWO.replace('"b"', f'"{"b" * 300}"'), r"its name is too long for a folder's"),
        ("question = ", r"is not a readable TOML file"),
    ],
)
def test_sweep_that_cannot_be_run_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=message) as error:
        planned(text, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_figures_that_a_table_may_show_are_those_of_an_evaluation() -> None:
    assert tuple(Retention.__annotations__) == FIGURES
    assert {name for name in FIGURES if "recall" in name} == set(Recall.__annotations__)


def test_sweep_or_held_out_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"there is no sweep .*/none\.toml; see the folder"):
        load(tmp_path / "none.toml")
    bare = Source("0123", SOURCE.widths, rows=240, held_out=0)
    with pytest.raises(SweepError, match=r"held-out rows, .* set corpus\.held_out"):
        plan(read(TWO, tmp_path), BASE, bare, tmp_path / "out")
