from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import contents, copy
from shard_files import shard_file
from small_caches import write_cache

from cli import student as student_command
from cli import train as train_command
from student.stage_fields import fields

RECIPE = """
[student]
init = "{init}"
max_tokens = 24
reduced_heads = {{ fc2 = 6, fc3 = 4, fc4 = 3 }}

[stages.1]
steps = 4
batch_size = 16
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_encoder: Path) -> Path:
    """A folder with a cache, a recipe, and a run with its first stage."""
    folder = tmp_path_factory.mktemp("work")
    write_cache(folder)
    (folder / "recipe.toml").write_text(RECIPE.format(init=small_encoder))
    return folder


def call(main: object, *arguments: object) -> int:
    """Run a command's entry point in this process; give its exit code."""
    before, sys.argv = sys.argv, ["command", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()  # type: ignore[operator]
    finally:
        sys.argv = before
    return int(stop.value.code or 0)


def train(folder: Path, *arguments: object, stage: int = 1, out: str = "run") -> int:
    return call(
        train_command.main, "--stage", stage, "--cache", folder / "cache", "--out", folder / out,
        "--recipe", folder / "recipe.toml", "--cpu", *arguments,
    )  # fmt: skip


def test_training_loads_no_teacher_and_evaluation_and_export_follow(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import sys; sys.argv = ['jasper-train', *sys.argv[1:]]\n"
        "from cli.train import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "loaded = [m for m in sys.modules if m.startswith('teacher_cache.') or m == 'datasets']\n"
        "print(code, sorted(loaded))"
    )
    arguments = ("--stage", "1", "--cache", folder / "cache", "--out", folder / "run",
                 "--recipe", folder / "recipe.toml", "--cpu")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("0 "), done.stderr
    assert "encoders" not in last
    assert "teacher_cache.reader" in last
    assert "datasets" not in last

    assert call(student_command.main, "evaluate", folder / "run", "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(
        (folder / "run" / "stage-1" / "evaluation.json").read_text()
    )
    assert json.loads(printed)["rows"] == 40

    assert (
        call(student_command.main, "evaluate", folder / "run", "--heads", "fc1[:5]", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["widths"]["fc1[:5]"] == 5
    assert found["retention"]["fc1[:5]"]["left"]["cosine"] is None
    assert call(student_command.main, "evaluate", folder / "run", "--heads", "fc2") == 2
    assert "the run has not trained 'fc2'; it can give fc1, pooled" in capsys.readouterr().err

    assert call(student_command.main, "export", folder / "run", folder / "out") == 0
    assert (folder / "out" / "modules.json").is_file()
    assert f'SentenceTransformer("{folder / "out"}")' in capsys.readouterr().out


def test_dry_run_says_what_would_be_trained_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "--dry-run", out="dry", stage=1) == 0
    printed = capsys.readouterr().out
    # FC1: 32 x 20 weights and 20 biases.
    for fact in ("660", "200", "4 x 16", "0.32"):
        assert fact in printed
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", 7), "there is no stage 7; stages are 1, 2, 3"),
        (("--cache", "nowhere"), "nowhere is no cache"),
        (("--recipe", "nowhere.toml"), "there is no recipe nowhere.toml"),
        (("--teachers", "lefd"), "has no teacher 'lefd'; it has left, right"),
        (("--weights", "relatve=0"), "there is no loss 'relatve'"),
        (("--weights", "relative"), "--weights is like relative=0"),
        (("--weights", "cosine=0,similarity=0,relative=0"), "nothing would be trained"),
        (("--batch-size", 500), "a batch of 500 texts, but only 200 rows"),
        (("--learning-rate", -1), "stage 1: learning_rate"),
        (("--micro-batch", 5), "micro_batch is 5, which does not divide a batch of 16"),
        (("--precision", "fp8"), "--precision is auto, fp32 or bf16"),
        (("--pooled", "maybe"), "--pooled is auto, require or off, found 'maybe'"),
        (("--pooled", "require"), "--pooled require: the cache keeps no pooled state"),
        (("--init-from", "nowhere"), "--init-from nowhere holds no trained stage"),
        (("--stage", 2), "stage 2 starts from stage 1, which is not in"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert train(folder, *arguments, out="bad") == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (folder / "bad").exists()


def test_a_stage_takes_its_cache_from_the_one_it_starts_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--recipe", folder / "recipe.toml", "--cpu")
    out = folder / "two stages"
    for stage, message in ((1, "nothing comes before this stage"), (2, "no --cache, and")):
        assert call(train_command.main, "--stage", stage, "--out", out, *asked) == 2
        assert message in capsys.readouterr().err
    assert train(folder, out=out.name) == 0
    assert train(folder, "--dry-run", out=out.name) == 0
    assert "done before" in capsys.readouterr().out
    assert train(folder, "--dry-run", "--steps", 5, out=out.name) == 2
    assert "steps was 4, is now 5" in capsys.readouterr().err
    assert call(train_command.main, "--stage", 2, "--out", out, "--dry-run", *asked) == 0
    other = folder / "other"
    start = ("--init-from", out / "stage-1")
    assert call(train_command.main, "--stage", 2, "--out", other, *start, "--dry-run", *asked) == 0
    record = out / "stage-1" / "run.json"
    record.write_text(record.read_text().replace(f"{folder}/cache", f"{folder}/gone"))
    assert call(train_command.main, "--stage", 2, "--out", out, "--dry-run", *asked) == 2
    assert "gone any more; give it as --cache" in capsys.readouterr().err


def test_a_trained_stage_outlives_a_restart_that_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, out="kept") == 0
    before = contents(folder / "kept")
    refused = {
        "cannot start from itself": ("--init-from", folder / "kept" / "stage-1"),
        "holds no trained stage": ("--init-from", folder / "kept" / "stage-l"),
        "--pooled require: the cache keeps no": ("--pooled", "require"),
    }
    for message, arguments in refused.items():
        assert train(folder, "--restart", *arguments, out="kept") == 2
        assert message in capsys.readouterr().err
        assert contents(folder / "kept") == before
    assert train(folder, "--restart", "--steps", 5, "--dry-run", out="kept") == 0
    assert contents(folder / "kept") == before
    assert train(folder, "--restart", "--steps", 5, out="kept") == 0
    assert "(done before)" not in capsys.readouterr().out
    assert json.loads((folder / "kept/stage-1/run.json").read_text())["stage"]["steps"] == 5


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_forgotten_recipe_is_noticed_before_its_model_is_sought(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    out = folder / "forgotten"
    assert train(folder, out=out.name) == 0
    assert call(train_command.main, "--stage", 2, "--out", out, "--cpu", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "was trained as another student: init was " in line
    assert line.endswith("give the recipe that it was trained with as --recipe")


def test_a_weight_that_changes_nothing_is_refused_by_the_name_of_its_field(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "plain.toml"
    text = (folder / "recipe.toml").read_text()
    recipe.write_text(text + "heads.fc1 = { similarity = 0, margin = 0 }\n")
    assert train(folder, "--recipe", recipe, "--weights", "similarity=2", out="bad") == 2
    assert "as stages.1.heads.fc1.similarity" in capsys.readouterr().err
    asked = ("--recipe", recipe, "--weights", "margin=0.5", "--dry-run")
    assert train(folder, *asked, out="bad") == 0
    assert '"margin": 0.5' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("[student]\nini = 3", "unknown key student.ini; did you mean 'init'?"),
        ("[stages.1]\nstep = 3", "stage 1 has no field 'step'; did you mean 'steps'?"),
        ("[stages.9]\nsteps = 3", "there is no stage 9"),
        ("[stuednt]", "unknown key stuednt; did you mean 'student'?"),
        ("[stages.1]\nteacher_weights = { lefd = 2 }", "names 'lefd'; the cache holds left, right"),
        ('[stages.1.heads."fc1[:99]"]\nrelative = 1', "fc1[:99] is no part of fc1, which is 20"),
        ("[stages.1.heads.fc1]\ncosin = 1", "stage 1: heads.fc1.cosin"),
        ("seed = 'x'", "seed: Input should be a valid integer"),
        ("seed = ", "is not a readable TOML file"),
        ("[student]\nreduced_heads = { fc1 = 3 }", "fc1 is as wide as the target"),
        ("[student]\ninit = './nowhere'", "the student's init: there is no folder"),
    ],
)
def test_recipe_that_cannot_be_followed_is_one_line_and_exit_2(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: str,
    message: str,
) -> None:
    recipe = tmp_path / "changed.toml"
    recipe.write_text(changed)
    assert train(folder, "--recipe", recipe, out="bad") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_evaluation_of_a_folder_without_a_stage_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(student_command.main, "evaluate", tmp_path) == 2
    assert "holds no finished stage" in capsys.readouterr().err


def test_training_verifies_the_shards_first_if_asked(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = copy(folder, tmp_path / "own")
    assert train(own, "--verify", "--dry-run", out="new") == 0
    assert "verifying: 4/4 (100%)" in capsys.readouterr().err
    path = shard_file(own / "cache", 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert train(own, "--dry-run", out="new") == 0
    assert train(own, "--verify", "--dry-run", out="new") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: shard 2 ({path}) has checksum ")
    assert line.endswith(f"mend it with: jasper-cache repair {own / 'cache'}")


def test_stages_and_their_fields_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(train_command.main, "--stages") == 0
    printed = capsys.readouterr().out
    assert "under [stages.N] in a recipe" in printed
    for name, default, _ in fields():
        assert f"  {name} = {default}\n" in printed


def test_metrics_and_progress_tell_the_peak_of_memory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "--micro-batch", 4, out="metered") == 0
    (line,) = (folder / "metered" / "stage-1" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    # A process with torch in it has a hundred million bytes and less than the machine.
    assert 1e8 < metrics["peak_memory"] < 1e12
    assert {"samples_per_second", "data_wait"} <= set(metrics)
    assert ", at most " in capsys.readouterr().err
    record = json.loads((folder / "metered" / "stage-1" / "run.json").read_text())
    assert record["memory"] == {"micro_batch": 4, "gradient_checkpointing": False}
