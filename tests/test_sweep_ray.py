"""Arms in parallel on a real Ray of this machine alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command_of
from jobs import contents
from small_caches import write_cache

from cli import sweep as sweep_command

RECIPE = """
[student]
init = "{init}"
max_tokens = 24
reduced_heads = {{ fc2 = 6 }}

[stages.1]
steps = 40
batch_size = 16
learning_rate = 1e-2

[stages.2]
trains = ["fc1", "layers[-1:]"]
steps = 6
batch_size = 16
learning_rate = 1e-2
"""
SWEEP = """
question = "Which rate?"
recipe = "recipe.toml"
run = [1, 2]
seeds = [0]
baseline = "base"

[[arms]]
name = "base"

[[arms]]
name = "slow"
change.stages.2.learning_rate = 1e-4

[[arms]]
name = "broken"
change.stages.1.learning_rate = 1e37
"""


@pytest.mark.slow
def test_sweep_on_ray_whose_worker_is_killed_is_the_sweep_of_one_process(
    tmp_path: Path,
    small_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_cache(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(init=small_encoder))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    script = Path(__file__).with_name("ray_sweeping.py")
    on_ray = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert on_ray.returncode == 0, on_ray.stderr
    found = json.loads(on_ray.stdout.splitlines()[-1])
    assert found == {"code": 1, "killed": 1, "listening": ["loopback"]}
    assert "error: arm 'broken', seed 0: the loss of step " in on_ray.stderr

    here = command_of(sweep_command.app, "jasper-train", monkeypatch, capsys)(
        "sweep", tmp_path / "sweep.toml", "--cache", tmp_path / "cache", "--out",
        tmp_path / "here", "--cpu",
    )  # fmt: skip
    assert here.code == 1
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("ray", "here")
    ]
    assert results[0] == results[1]
    assert list(results[0]["arms"][2]["problems"]) == ["0"]
    models = [
        {name: data for name, data in contents(tmp_path / out).items() if "/model/" in name}
        for out in ("ray", "here")
    ]
    assert models[0] == models[1]
    assert models[0]
