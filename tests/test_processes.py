from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_caches import write_cache

from student.model import create, load
from student.spec import StudentSpec

SPEC = {"max_tokens": 24, "reduced_heads": {"fc2": 6, "fc3": 4, "fc4": 3}}
RECIPE = """
[student]
init = "{init}"
max_tokens = 24
reduced_heads = {{ fc2 = 6, fc3 = 4, fc4 = 3 }}

[stages.3]
steps = 1
batch_size = 16
learning_rate = 1e-2
"""


def test_two_processes_learn_what_one_learns_from_the_whole_batch(
    small_encoder: Path, tmp_path: Path
) -> None:
    spec = StudentSpec.model_validate({"init": str(small_encoder), **SPEC})
    cache = write_cache(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(init=small_encoder))
    arguments = ["-m", "cli.train", "--stage", "3", "--init-from", "fresh", "--cpu",
                 "--cache", str(cache), "--recipe", str(recipe), "--out"]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr",
                "127.0.0.1", "--master_port", str(port)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for name, start in (("one", []), ("two", launcher)):
        subprocess.run(
            [sys.executable, *start, *arguments, str(tmp_path / name)],
            env=environment,
            check=True,
            capture_output=True,
            timeout=120,
        )
    logged = [
        json.loads((tmp_path / name / "stage-3" / "metrics.jsonl").read_text())
        for name in ("one", "two")
    ]
    for figure in ("loss", "gradient_norm", "fc1.cosine", "fc4.relative"):
        assert logged[1][figure] == pytest.approx(logged[0][figure], rel=1e-6), figure
    start = create(spec, small_encoder, target_width=20, seed=0).state_dict()
    one, two = (load(tmp_path / name / "stage-3" / "model").state_dict() for name in ("one", "two"))
    # A key's bias moves all of a query's scores alike: its gradient is rounding, and Adam makes a
    # full step of it, in whatever direction.
    names = [name for name in one if not name.endswith(".key.bias")]
    difference = sum(float((one[name] - two[name]).square().sum()) for name in names)
    update = sum(float((one[name] - start[name]).square().sum()) for name in names)
    assert difference < 1e-6 * update
