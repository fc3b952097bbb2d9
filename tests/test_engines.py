"""Two processes under each engine learn what one learns, from and to the same checkpoints."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from small_caches import write_cache
from torch import Tensor

from student.model import create, load
from student.run import StageRun
from student.spec import StudentSpec
from student.stages import stage
from student.train import Settings, train
from teacher_cache.reader import CacheReader

ROOT = Path(__file__).parent.parent
STAGES = {
    2: {"steps": 16, "batch_size": 16, "learning_rate": 1e-2, "trains": ["fc1", "layers[-1:]"]},
    3: {"steps": 4, "batch_size": 16, "learning_rate": 1e-2},
}
no_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
every_engine = pytest.mark.parametrize(
    "engine",
    [
        "fsdp",
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=[pytest.mark.slow, no_deepspeed]),
    ],
)


class Folder:
    """A cache, a recipe for it, and the runs of one process and of several."""

    def __init__(self, path: Path, encoder: Path) -> None:
        self.path = path
        self.encoder = encoder
        self.reader = CacheReader(write_cache(path))
        heads = {"fc2": 6, "fc3": 4, "fc4": 3}
        self.spec = StudentSpec(init=str(encoder), max_tokens=24, reduced_heads=heads)
        lines = ["[student]", f'init = "{encoder}"', "max_tokens = 24",
                 "reduced_heads = { fc2 = 6, fc3 = 4, fc4 = 3 }"]  # fmt: skip
        for number, changes in STAGES.items():
            lines += [f"[stages.{number}]", *(f"{k} = {json.dumps(v)}" for k, v in changes.items())]
        (path / "recipe.toml").write_text("\n".join(lines))

    def run(self, name: str, number: int) -> StageRun:
        return StageRun(
            out=self.path / name, stage=number, spec=stage(number, STAGES[number]),
            student=self.spec, identity=self.reader.identity, teachers=self.reader.teachers,
            seed=0, init_from="fresh",
        )  # fmt: skip

    def alone(self, name: str, number: int, *, stop_after: int | None = None) -> StageRun:
        """One process's run, here; interrupted when so many steps are in a checkpoint."""
        run = self.run(name, number)

        def on_step(done: int, _: object) -> None:
            if stop_after is not None and done > stop_after:
                raise KeyboardInterrupt

        settings = Settings(cpu=True, save_every=stop_after or 500)
        if stop_after is None:
            train(run, self.reader, self.encoder, settings=settings)
        else:
            with pytest.raises(KeyboardInterrupt):
                train(run, self.reader, self.encoder, settings=settings, on_step=on_step)
        return run

    def arguments(self, run: StageRun) -> list[str]:
        given = {"cache": self.reader.path, "out": run.out, "recipe": self.path / "recipe.toml",
                 "stage": run.stage, "init-from": run.init_from, "save-every": 1}  # fmt: skip
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return ["-m", "cli.train", "--cpu", *options]

    def launched(self, run: StageRun, engine: str) -> subprocess.Popen[str]:
        """The same run by two processes, with the published configuration of an engine."""
        config = ROOT / "recipes" / "accelerate" / f"{engine}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config),
                    "--num_processes", "2", "--main_process_ip", "127.0.0.1",
                    "--main_process_port", str(free_port())]  # fmt: skip
        return subprocess.Popen(
            [sys.executable, *launcher, *self.arguments(run)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def difference(self, one: StageRun, other: StageRun) -> float:
        """How far two trained students are apart, as a share of the way they have gone."""
        start = create(self.spec, self.encoder, target_width=20, seed=0).state_dict()
        first, second = (load(run.model).state_dict() for run in (one, other))
        # A key's bias moves all of a query's scores alike: its gradient is rounding, and Adam
        # makes a full step of it, in whatever direction.
        names = [name for name in first if not name.endswith(".key.bias")]
        return distance(first, second, names) / distance(first, start, names)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: list[str]) -> float:
    return math.sqrt(sum(float((one[n] - other[n]).double().square().sum()) for n in names))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path, small_encoder: Path) -> Folder:
    return Folder(tmp_path, small_encoder)


@every_engine
def test_two_processes_go_on_from_one_are_killed_and_one_goes_on_from_them(
    folder: Folder, engine: str
) -> None:
    whole = folder.alone("whole", 2)
    broken = folder.alone("broken", 2, stop_after=2)
    process = folder.launched(broken, engine)
    try:
        wait_for(broken.checkpoints / "step-00000004", process)
    finally:
        launcher = psutil.Process(process.pid)
        for started in (launcher, *launcher.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                started.kill()
        process.communicate()
    left = sorted(path.name for path in broken.checkpoints.glob("step-*"))
    assert "step-00000004" <= left[-1] < "step-00000016"
    steps = []
    train(
        broken, folder.reader, folder.encoder, settings=Settings(cpu=True),
        on_step=lambda done, _: steps.append(done),
    )  # fmt: skip
    assert steps[0] >= 4
    difference = folder.difference(whole, broken)
    assert difference < 1e-4, difference  # 0.8 without the optimizer's state
    before = create(folder.spec, folder.encoder, target_width=20, seed=0).state_dict()
    after = load(broken.model).state_dict()
    frozen = [name for name in after if ".layer.2." not in name and ".fc1." not in name]
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
