"""Stage 4 from the command line: recipe, dry run, training, recall, export, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import write_stella
from safetensors.torch import load_file
from small_caches import write_cache
from small_pairs import pairs, write_folder
from small_vision import write_siglip
from test_processes import launch
from test_train_command import call

from cli import student as student_command
from cli import train as train_command
from student.model import load

RECIPE = """
[student]
init = "stella"
max_tokens = 24
reduced_heads = { fc2 = 6, fc3 = 4, fc4 = 3 }

[student.vision]
init = "siglip"
image_tokens = 5

[images]
path = "pairs"
held_out = 0.3

[stages.3]
steps = 2
batch_size = 8

[stages.4]
steps = 3
batch_size = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a recipe, pairs, and a run with its third stage."""
    folder = tmp_path_factory.mktemp("work")
    write_cache(folder, texts=60)
    write_stella(folder / "stella")
    write_siglip(folder / "siglip")
    write_folder(folder / "pairs", pairs(40))
    (folder / "recipe.toml").write_text(RECIPE)
    assert train(folder, "--init-from", "fresh", stage=3) == 0
    return folder


def train(folder: Path, *arguments: object, stage: int = 4, out: str = "run") -> int:
    return call(
        train_command.main, "--stage", stage, "--cache", folder / "cache", "--out", folder / out,
        "--recipe", folder / "recipe.toml", "--cpu", *arguments,
    )  # fmt: skip


def test_stage_4_recall_and_export_follow_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert '"reads": "images"' in printed
    assert train(folder) == 0
    assert call(
        student_command.main, "recall", folder / "run", "--recipe", folder / "recipe.toml", "--json"
    ) == 0  # fmt: skip
    capsys.readouterr()
    result = json.loads((folder / "run/stage-4/recall.json").read_text())
    assert set(result["recall"]) == {"pooled", "fc1", "fc2", "fc3", "fc4"}
    assert result["pairs"] == result["captions"] > 2
    assert all(0 <= v <= 1 for d in result["recall"].values() for both in d.values() for v in both)
    out = folder / "jasper"
    assert call(student_command.main, "export", folder / "run", out, "--format", "jasper") == 0
    names = set(load_file(out / "model.safetensors"))
    assert {"vector_linear_20.weight", "vector_linear_3.bias", "model.norm.weight"} <= names
    assert "| left |" in (out / "README.md").read_text()
    # The head that was asked for is the one that is used; without one, a reader of the release's.
    for head, width in ((None, 20), ("fc3", 4), ("6", 6)):
        asked = () if head is None else ("--head", head)
        place = folder / f"jasper {head}"
        line = ("export", folder / "run", place, "--format", "jasper", *asked)
        assert call(student_command.main, *line) == 0
        assert json.loads((place / "config.json").read_text())["vector_dim"] == width
    for head in ("pooled", "fc1[:8]"):
        line = ("export", folder / "run", folder / "none", "--format", "jasper", "--head", head)
        assert call(student_command.main, *line) == 2
        assert "places for whole heads" in capsys.readouterr().err
        assert not (folder / "none").exists()
    # A run may begin from it, heads and all.
    text = RECIPE.replace('"stella"', '"jasper"').replace('init = "siglip"\n', "")
    (folder / "again.toml").write_text(text)
    assert train(folder, "--init-from", "fresh", "--recipe", folder / "again.toml", "--steps", 1,
                 out="again") == 0  # fmt: skip
    began, ended = (
        load_file(folder / run / "stage-4/model/heads.safetensors") for run in ("run", "again")
    )
    assert all((began[name] == ended[name]).all() for name in began)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ('[images]\npath = "pairs"\nheld_out = 0.3', "say in the recipe where they are"),
        ('[student.vision]\ninit = "siglip"\nimage_tokens = 5', "under [student.vision]"),
        ('init = "siglip"', "holds a model of type 'qwen2'"),
        ("image_tokens = 5", "an image takes 300 tokens"),
        ('path = "pairs"', "exactly one of path, dataset and generator"),
        ("none of it", "fc1 (20 wide) was never trained"),
    ],
)
def test_a_recipe_that_lacks_something_is_told_what(
    folder: Path, capsys: pytest.CaptureFixture[str], cut: str, message: str
) -> None:
    (folder / "lacking.toml").write_text(RECIPE.replace(cut, ""))
    assert (
        train(folder, "--recipe", folder / "lacking.toml", "--init-from", "fresh", out="bad") == 2
    )
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (folder / "bad").exists()


def test_rows_that_make_no_pair_are_told_when_they_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (write_folder(folder / "some", pairs(20)) / "captions.jsonl").open("a") as lines:
        lines.write('{"image": "images/000.png"}\n')
    recipe = folder / "some.toml"
    recipe.write_text(RECIPE.replace('path = "pairs"', 'path = "some"\nbad_rows = "skip"'))
    shutil.copytree(folder / "run" / "stage-3", folder / "apart" / "stage-3")
    assert train(folder, "--dry-run", "--recipe", recipe, out="apart") == 0
    told = f"images: 1 rows are no pairs; the first: {folder}/some/captions.jsonl:21: expected a ca"
    assert told in capsys.readouterr().err


def test_recall_and_export_of_a_run_without_images_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = folder / "run" / "stage-3"
    recipe = ("--recipe", folder / "recipe.toml")
    assert call(student_command.main, "recall", text, *recipe) == 2
    assert "was not trained on images" in capsys.readouterr().err
    out = folder / "none"
    assert call(student_command.main, "export", text, out, "--format", "jasper") == 2
    assert "the student has none; train stage 4" in capsys.readouterr().err
    assert call(student_command.main, "export", text, out, "--dtype", "bfloat16") == 2
    assert "--dtype goes with --format jasper" in capsys.readouterr().err
    assert call(student_command.main, "export", text, out, "--format", "onnx") == 2
    assert "--format is sentence-transformers or jasper" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(folder: Path, engine: str) -> None:
    start = ("--init-from", str(folder / "run" / "stage-3"))
    assert train(folder, *start, out="one") == 0
    launch(
        2, "-m", "cli.train", "--stage", "4", "--cache", str(folder / "cache"),
        "--out", str(folder / engine), "--recipe", str(folder / "recipe.toml"), "--cpu",
        "--precision", "fp32", *start, engine=engine,
    )  # fmt: skip
    one, two = (load(folder / run / "stage-4/model").state_dict() for run in ("one", engine))
    for name, value in one.items():
        # A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
        if "k_proj.bias" not in name:
            assert (value - two[name]).abs().max() < 1e-6, name
