"""Sweeps by the real command, on a small cache: what is shared, resumed, left alone and refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command_of
from jobs import contents
from scipy.stats import ttest_rel
from small_caches import write_cache
from sweeping import COMMON, DONE, RECIPE, SWEEP, Sweeps, options, results

from cli import train as train_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_cache(folder)
    (folder / "recipe.toml").write_text(RECIPE.format(init=small_encoder, common=COMMON))
    (folder / "sweep.toml").write_text(SWEEP)
    return folder


@pytest.fixture
def sweeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sweeps:
    return Sweeps(folder, monkeypatch, capsys)


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Path, str]:
    """A finished sweep, and what its command told on the way."""
    out, told = folder / "whole", io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jasper-train", *options(folder, out, "sweep.toml")])
        patch.setattr(sys, "stdout", told)
        patch.setattr(sys, "stderr", told)
        with pytest.raises(SystemExit) as end:
            train_command.main()
    assert end.value.code == 0, told.getvalue()
    return out, told.getvalue()


def figure(found: dict[str, Any], arm: str, measure: str) -> dict[str, Any]:
    (part,) = (each for each in found["arms"] if each["arm"] == arm)
    figures: dict[str, Any] = part["figures"]["fc1"]["left"][measure]
    return figures


def test_what_arms_have_in_common_is_trained_once(whole: tuple[Path, str]) -> None:
    out, told = whole
    # Two seeds: stage 1 for base and slow together, stage 2 for each of the three arms.
    assert told.count(DONE) == 2 * (1 + 3)
    assert told.count("base, slow (seed 0, stage 1): done;") == 1
    assert len(list((out / "runs").iterdir())) == 8
    base, slow, merged = (out / "arms" / name / "seed-1" for name in ("base", "slow", "merged"))
    assert (base / "stage-1").resolve() == (slow / "stage-1").resolve()
    assert not (merged / "stage-1").exists()
    assert len({path.resolve() for path in (base, slow, merged)}) == 3


def test_an_arm_is_bit_for_bit_what_the_plain_command_trains(
    whole: tuple[Path, str], sweeps: Sweeps, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    for stage, changes in ((1, ()), (2, ("--learning-rate", "1e-4"))):
        assert sweeps.train(plain, "--stage", stage, "--seed", 1, *changes).code == 0
    arm = whole[0] / "arms" / "slow" / "seed-1"
    for stage in (1, 2):
        found = contents(arm / f"stage-{stage}" / "model")
        assert found == contents(plain / f"stage-{stage}" / "model")
        assert "heads.safetensors" in found
        records = [json.loads((place / f"stage-{stage}" / "run.json").read_text())
                   for place in (arm, plain)]  # fmt: skip
        for record in records:
            del record["figures"]
        assert records[0] == records[1]


def test_figures_are_those_of_the_evaluations_with_their_spread_over_seeds(
    whole: tuple[Path, str],
) -> None:
    out, told = whole
    found = results(out)
    assert found["question"] == "Does the rate of stage 2 matter?"
    assert (found["sweep"], found["baseline"], found["seeds"]) == ("sweep", "base", [0, 1])
    assert found["rows"] == 40
    assert [arm["settings"] for arm in found["arms"]] == [
        {}, {"stages.2.learning_rate": 1e-4}, {"run": [2]}
    ]  # fmt: skip
    values: dict[str, dict[str, list[float]]] = {}
    for arm in found["arms"]:
        assert list(arm["runs"]) == ["0", "1"]
        values[arm["arm"]] = {}
        for run_folder in arm["runs"].values():
            evaluation = json.loads((out / run_folder / "stage-2" / "evaluation.json").read_text())
            assert evaluation["cache"] == found["cache"]
            for measure, value in evaluation["retention"]["fc1"]["left"].items():
                values[arm["arm"]].setdefault(measure, []).append(value)
    for name, measures in values.items():
        for measure, seen in measures.items():
            part = figure(found, name, measure)
            assert part["values"] == seen
            assert part["mean"] == pytest.approx(np.mean(seen), rel=1e-12)
            assert part["sd"] == pytest.approx(np.std(seen, ddof=1), rel=1e-9, abs=1e-15)
    assert len(values["base"]) >= 3
    differ = {name: ttest_rel(values[name]["cosine"], values["base"]["cosine"]).pvalue
              for name in ("slow", "merged")}  # fmt: skip
    smallest = min(differ, key=lambda name: differ[name])
    p = figure(found, smallest, "cosine")["p"]
    assert p == pytest.approx(min(1, 2 * differ[smallest]), rel=1e-6)
    mean, sd = (figure(found, "slow", "cosine")[name] for name in ("mean", "sd"))
    assert f"{mean:.4f}±{sd:.4f}" in told
    assert "over 2 seeds; * differs from 'base': p < 0.05 by a t-test paired by seed" in told


def test_csv_has_the_same_figures_a_line_each(whole: tuple[Path, str]) -> None:
    found = results(whole[0])
    lines = list(csv.DictReader((whole[0] / "results.csv").read_text().splitlines()))
    seen = 0
    for line in lines:
        (arm,) = (each for each in found["arms"] if each["arm"] == line["arm"])
        part = arm["figures"][line["vector"]][line["teacher"]][line["measure"]]
        assert float(line["mean"]) == part["mean"]
        assert [float(line["seed 0"]), float(line["seed 1"])] == part["values"]
        assert line["significant"] == str(part["significant"])
        seen += 1
    assert seen == sum(
        len(measures)
        for arm in found["arms"]
        for teachers in arm["figures"].values()
        for measures in teachers.values()
    )


def test_a_finished_sweep_is_left_alone_and_one_that_was_killed_ends_as_it_does(
    whole: tuple[Path, str], sweeps: Sweeps, tmp_path: Path
) -> None:
    before = contents(whole[0])
    again = sweeps(whole[0])
    assert again.code == 0
    assert DONE not in again.err
    assert contents(whole[0]) == before
    assert "(baseline)" in again.out

    out = tmp_path / "killed"
    script = (
        "import os, signal, sys\n"
        "def die(event, arguments):\n"
        "    if event == 'os.rename' and str(arguments[1]).endswith('stage-2/model'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(die)\n"
        "from cli.train import main\nmain()"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, *options(sweeps.folder, out, "sweep.toml")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9
    done = [path for path in out.glob("runs/*/stage-*/model") if not path.parent.is_symlink()]
    assert len(done) == 1
    assert not (out / "results.json").exists()
    ended = sweeps(out)
    assert ended.code == 0, ended.err
    assert ended.err.count(DONE) == 7
    assert results(out) == results(whole[0])


def test_tables_show_what_the_file_asks_for(whole: tuple[Path, str], sweeps: Sweeps) -> None:
    assert "fc1, right: 40 held-out texts" in whole[1]
    assert "init" not in whole[1]
    measure = '[measure]\nteachers = ["left"]\nfigures = ["cosine"]\n\n[[arms]]'
    text = 'name = "sweep"\n' + SWEEP.replace("[[arms]]", measure, 1)
    before = contents(whole[0])
    ran = sweeps(whole[0], file=sweeps.write(text))
    assert (ran.code, DONE in ran.err) == (0, False)
    (header,) = (line for line in ran.out.splitlines() if "arm " in line)
    assert header.replace("┃", " ").split() == ["arm", "cosine"]
    assert "fc1, right" not in ran.out
    assert contents(whole[0]) == before
    printed = sweeps(whole[0], "--json", file="other.toml").out
    assert json.loads(printed) == results(whole[0])


def test_only_what_is_missing_or_changed_is_trained(
    whole: tuple[Path, str], sweeps: Sweeps, tmp_path: Path
) -> None:
    out = tmp_path / "moved"
    shutil.copytree(whole[0], out, symlinks=True)
    shutil.rmtree((out / "arms" / "slow" / "seed-1").resolve())
    mended = sweeps(out)
    assert mended.err.count(DONE) == 1
    assert "slow (seed 1, stage 2): done; 3/3 steps" in mended.err
    assert results(out) == results(whole[0])

    # Without stage 1 nothing is to be trained: what came of it is there.
    shutil.rmtree((out / "arms" / "slow" / "seed-1" / "stage-1").resolve().parent)
    assert DONE not in sweeps(out).err

    text = SWEEP.replace("1e-4", "2e-4") + '[[arms]]\nname = "fast"\n'
    text += "change.stages.2.learning_rate = 2e-2\n"
    changed = sweeps(out, file=sweeps.write(text.replace("question", 'name = "sweep"\nquestion')))
    # Of the new arms two seeds each, and for seed 1 stage 1 again.
    assert changed.err.count(DONE) == 5
    assert [arm["arm"] for arm in results(out)["arms"]] == ["base", "slow", "merged", "fast"]
    base = figure(results(whole[0]), "base", "cosine")
    assert figure(results(out), "base", "cosine")["values"] == base["values"]


@pytest.mark.parametrize("left", [None, "[]", '{"retention": 3}'])
def test_a_sweep_that_was_moved_measures_again_what_lost_its_figures(
    left: str | None, folder: Path, sweeps: Sweeps, tmp_path: Path
) -> None:
    text = SWEEP.replace(
        "change.run = [2]", f"change.run = [1, 3]\n[arms.change.stages.3]\n{COMMON}"
    )
    file = sweeps.write(text.replace("[0, 1]", "[0]"))
    assert sweeps(tmp_path / "before", file=file).code == 0
    found = results(tmp_path / "before")
    out = shutil.move(tmp_path / "before", tmp_path / "after")
    lost = out / found["arms"][2]["runs"]["0"] / "stage-3" / "evaluation.json"
    lost.unlink() if left is None else lost.write_text(left)
    again = sweeps(out, file=file)
    assert (again.code, again.err.count(DONE)) == (0, 1), again.err
    assert results(out) == found


def test_an_arm_that_fails_is_named_and_the_others_go_on(sweeps: Sweeps, tmp_path: Path) -> None:
    text = SWEEP.replace("1e-4", "1e37").replace("[0, 1]", "[0]")
    ran = sweeps(tmp_path / "out", file=sweeps.write(text))
    assert ran.code == 1
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: arm 'slow', seed 0: the loss of step ")
    assert "slow (0 of 1 seeds)" in ran.out
    assert "one seed: no standard deviation and no p" in ran.out
    found = results(tmp_path / "out")
    base, slow, merged = found["arms"]
    assert list(slow["problems"]) == ["0"]
    assert (slow["runs"], slow["figures"]) == ({}, {})
    for arm in (base, merged):
        assert "problems" not in arm
        figures = arm["figures"]["fc1"]["left"]["cosine"]
        assert (figures["sd"], figures["p"], figures["significant"]) == (None, None, False)
    assert merged["figures"]["fc1"]["left"]["cosine"]["difference"] is not None


def test_dry_run_counts_what_is_shared_and_writes_nothing(sweeps: Sweeps, tmp_path: Path) -> None:
    ran = sweeps(tmp_path / "out", "--dry-run")
    assert ran.code == 0, ran.err
    assert "10 stage runs (30 steps), of which 8 differ (24 steps); 0 are done, 8" in ran.out
    assert "stages.2.learning_rate = 0.0001" in ran.out
    plan = json.loads(sweeps(tmp_path / "out", "--dry-run", "--json").out)
    assert sum(stage["steps"] for stage in plan["stages"].values() if stage["to do"]) == 24
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (SWEEP.replace("question", "quetion"), (), "unknown key quetion; did you mean 'question'?"),
        (SWEEP.replace('baseline = "base"', 'baseline = "bass"'), (), "'bass' is none of the arms"),
        (SWEEP.replace('"slow"', '"base"'), (), "two arms are named 'base' and 'base'"),
        (SWEEP.replace("1e-4", "-1"), (), "arm 'slow': stage 2: learning_rate"),
        (SWEEP.replace("recipe.toml", "no.toml"), (), "there is no recipe"),
        (
            SWEEP + 'change.stages.2.trains = ["layers[-9]"]',
            (),
            "arm 'merged': stage 2: layers[-9] matches none of the student's 3 layers",
        ),
        (SWEEP, ("--recipe", "none.toml"), "there is no recipe none.toml"),
        (SWEEP, ("--engine", "slurm"), "--engine is local or ray, found 'slurm'"),
        (SWEEP, ("--workers", 2), "--ray-address, --workers and --gpus belong to --engine ray"),
        (SWEEP, ("--precision", "fp8"), "--precision is auto, fp32 or bf16"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_before_anything_is_trained(
    sweeps: Sweeps, tmp_path: Path, text: str, arguments: tuple[object, ...], message: str
) -> None:
    ran = sweeps(tmp_path / "out", *arguments, file=sweeps.write(text))
    assert ran.code == 2
    (line,) = ran.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_sweep_and_a_launcher_are_refused(
    whole: tuple[Path, str], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(whole[0])
    ran = sweeps(whole[0], file=sweeps.write(SWEEP))
    assert ran.code == 2
    assert "holds the sweep 'sweep', this one is 'other'; give another --out" in ran.err
    assert contents(whole[0]) == before
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    ran = sweeps(whole[0])
    assert ran.code == 2
    assert "start it once, without a launcher" in ran.err


def test_plain_training_is_the_command_that_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = command_of(train_command.app, "jasper-train", monkeypatch, capsys)("--help")
    assert plain.code == 0
    assert " sweep" not in plain.out.split("[OPTIONS]")[0]
    assert "--init-from" in plain.out
    monkeypatch.setattr(sys, "argv", ["jasper-train", "sweep", "--help"])
    with pytest.raises(SystemExit) as end:
        train_command.main()
    assert end.value.code == 0
    assert "sweep [OPTIONS]" in capsys.readouterr().out
