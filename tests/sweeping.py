"""Sweeps by the real command on a small cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Ran, command_of

from cli import sweep as sweep_command
from cli import train as train_command

RECIPE = """
[student]
init = "{init}"
max_tokens = 24
reduced_heads = {{ fc2 = 6, fc3 = 4, fc4 = 3 }}

[stages.1]
{common}

[stages.2]
{common}
trains = ["fc1", "layers[-1:]"]
"""
COMMON = "steps = 3\nbatch_size = 16\nlearning_rate = 1e-2"
SWEEP = """
question = "Does the rate of stage 2 matter?"
recipe = "recipe.toml"
run = [1, 2]
seeds = [0, 1]
baseline = "base"

[[arms]]
name = "base"

[[arms]]
name = "slow"
change.stages.2.learning_rate = 1e-4

[[arms]]
name = "merged"
change.run = [2]
"""
DONE = ": done; "


def options(folder: Path, out: Path, file: str) -> list[str]:
    return [
        "sweep",
        str(folder / file),
        "--cache",
        str(folder / "cache"),
        "--out",
        str(out),
        "--cpu",
    ]


class Sweeps:
    """The command, and the folder that it works in."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._train = command_of(train_command.app, "jasper-train", monkeypatch, capsys)
        self._sweep = command_of(sweep_command.app, "jasper-train", monkeypatch, capsys)

    def __call__(self, out: Path, *more: object, file: str = "sweep.toml") -> Ran:
        return self._sweep(*options(self.folder, out, file), *more)

    def train(self, out: Path, *more: object) -> Ran:
        return self._train(
            "--cache", self.folder / "cache", "--out", out, "--recipe",
            self.folder / "recipe.toml", "--cpu", *more,
        )  # fmt: skip

    def write(self, text: str, name: str = "other.toml") -> str:
        (self.folder / name).write_text(text)
        return name


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found
