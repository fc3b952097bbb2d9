"""Stages of a small student, each from the same untrained start, and what they leave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from student.model import load
from student.run import StageRun
from student.spec import StudentSpec
from student.stages import stage
from student.train import Settings, train
from teacher_cache.reader import CacheReader

# No text is cut, so that lengths differ and batches are sorted by them.
SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4, "fc4": 3}, max_tokens=64)
QUICK = {"steps": 4, "batch_size": 16, "learning_rate": 1e-3}


def stage_run(
    reader: CacheReader, out: Path, number: int = 3, spec: StudentSpec = SPEC, **changes: Any
) -> StageRun:
    """A quick stage; `changes` are those of a recipe."""
    return StageRun(
        out=out,
        stage=number,
        spec=stage(number, {**QUICK, **changes}),
        student=spec,
        identity=reader.identity,
        teachers=reader.teachers,
        seed=0,
        init_from="fresh",
    )


def trained(
    reader: CacheReader, init: Path, out: Path, number: int = 3, **changes: Any
) -> dict[str, Tensor]:
    """The parameters after such a stage."""
    run = stage_run(reader, out, number, **changes)
    assert train(run, reader, init, settings=Settings(cpu=True))
    state: dict[str, Tensor] = load(run.model).state_dict()
    return state


def interrupted(run: StageRun, reader: CacheReader, init: Path, step: int) -> Path:
    """Train until the checkpoint of a step is there; give the file of its state."""

    def stop(done: int, _: object) -> None:
        if done == step + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, reader, init, settings=Settings(save_every=step, cpu=True), on_step=stop)
    return run.checkpoints / f"step-{step:08d}" / "state.json"


def assert_same_but_for_rounding(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Within 1e-6 of the length of all parameters: a hundredth of what a step moves them.

    Not element by element: where a gradient is nothing but rounding, Adam makes a step of it. So it
    is with a key's bias, which moves all of a query's scores alike, and now and then elsewhere.
    """
    assert one.keys() == two.keys()
    names = [name for name in one if not name.endswith(".key.bias")]
    difference, length = (
        math.sqrt(sum(float(value.double().square().sum()) for value in values))
        for values in ([one[name] - two[name] for name in names], [one[name] for name in names])
    )
    assert difference <= 1e-6 * length
