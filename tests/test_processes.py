from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_caches import write_cache
from stage_runs import QUICK, SPEC, assert_same_but_for_rounding, trained

from student.losses import cosine_loss, relative_similarity_loss, similarity_loss
from student.model import create, load
from student.order import Order
from student.schedule import learning_rate_at
from student.spec import StudentSpec
from student.stages import stage
from teacher_cache.reader import CacheReader

FIELDS = {"max_tokens": 24, "reduced_heads": {"fc2": 6, "fc3": 4, "fc4": 3}}
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


def launch(processes: int, *arguments: str, engine: str | None = None) -> None:
    """Run Python with these arguments, in so many processes that know of each other.

    An engine is one of `recipes/accelerate`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes),
                "--master_addr", "127.0.0.1", "--master_port", port]  # fmt: skip
    if engine is not None:
        config = Path(__file__).parent.parent / "recipes" / "accelerate" / f"{engine}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config),
                    "--num_processes", str(processes), "--main_process_ip", "127.0.0.1",
                    "--main_process_port", port]  # fmt: skip
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_whole_batch(
    small_encoder: Path, tmp_path: Path
) -> None:
    spec = StudentSpec.model_validate({"init": str(small_encoder), **FIELDS})
    cache = write_cache(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(init=small_encoder))
    arguments = ["-m", "cli.train", "--stage", "3", "--init-from", "fresh", "--cpu",
                 "--cache", str(cache), "--recipe", str(recipe), "--out"]  # fmt: skip
    for name, processes in (("one", 1), ("two", 2)):
        launch(processes, *arguments, str(tmp_path / name))
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


# Of each text its own dropped columns; losses of every kind; vectors in micro batches.
EVERYTHING = {
    "learning_rate": 1e-4,
    "vector_dropout": 0.2,
    "teacher_weights": {"left": 2},
    "heads": {"fc2": {"target": ["teachers", "fc1"]}, "fc1[:5]": {"similarity": 3}},
}
APART = {"learning_rate": 1e-4, "steps": 2, "gather": False, "weight_decay": 0}


@pytest.fixture(scope="module")
def together(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, and stages that two processes trained together."""
    folder = tmp_path_factory.mktemp("together")
    cache = write_cache(folder)
    stages = {
        "whole": EVERYTHING,
        "parts": {**EVERYTHING, "micro_batch": 4, "gradient_checkpointing": True},
        "apart": APART,
        "apart-parts": {**APART, "micro_batch": 2},
    }
    work = Path(__file__).parent / "stage_work.py"
    launch(2, str(work), str(cache), str(small_encoder), str(folder), json.dumps(stages))
    return folder


@pytest.mark.parametrize("name", ["whole", "parts"])
def test_two_processes_and_their_micro_batches_end_where_one_process_does(
    together: Path, small_encoder: Path, tmp_path: Path, name: str
) -> None:
    alone = trained(CacheReader(together / "cache"), small_encoder, tmp_path, **EVERYTHING)
    two = load(together / name / "stage-3" / "model").state_dict()
    assert_same_but_for_rounding(two, alone)


@pytest.mark.parametrize("name", ["apart", "apart-parts"])
def test_without_gather_each_process_has_losses_of_its_own_and_gradients_are_averaged(
    together: Path, small_encoder: Path, name: str
) -> None:
    """The two shares of each batch, one after the other, in plain PyTorch."""
    reader = CacheReader(together / "cache")
    spec = stage(3, {**QUICK, **APART})
    student = create(SPEC, small_encoder, target_width=20, seed=0)
    trains = student.train_only(spec.trains)
    optimizer = torch.optim.AdamW(trains.values(), lr=spec.learning_rate, weight_decay=0)
    order = Order(len(reader.train_rows), spec.batch_size, 0)
    for step in range(spec.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(spec, step)
        losses = []
        for rows in np.split(order.rows_of(step), 2):
            vectors = student(student.batch(reader.texts(rows)), tuple(spec.heads))
            target = torch.from_numpy(reader.vectors(rows)).float()
            total = 10 * cosine_loss(vectors["fc1"], target)
            for head in vectors.values():
                total = total + 200 * similarity_loss(head, target)
                total = total + 20 * relative_similarity_loss(head, target)
            losses.append(total)
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trains.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    two = load(together / name / "stage-3" / "model").state_dict()
    assert_same_but_for_rounding(two, student.state_dict())
    (line,) = (together / name / "stage-3" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-3)


@pytest.mark.slow
def test_options_and_micro_batches_hold_where_parameters_are_sharded(
    small_encoder: Path, tmp_path: Path
) -> None:
    cache = write_cache(tmp_path)
    saving = {"micro_batch": 4, "gradient_checkpointing": True}
    stages = {"whole": EVERYTHING, "parts": {**EVERYTHING, **saving}}
    work = [str(Path(__file__).parent / "stage_work.py"), str(cache), str(small_encoder)]
    launch(2, *work, str(tmp_path), json.dumps(stages), engine="fsdp")
    alone = trained(CacheReader(cache), small_encoder, tmp_path / "alone", **EVERYTHING)
    for name in stages:
        record = json.loads((tmp_path / name / "stage-3" / "run.json").read_text())
        assert record["figures"]["engine"] == "FSDP2"
        assert_same_but_for_rounding(
            load(tmp_path / name / "stage-3" / "model").state_dict(), alone
        )
