"""The engine that is asked for is the one that runs, or the stage is refused in one line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from small_caches import write_cache
from stage_runs import stage_run

from student.engine import Engine
from student.launcher import asked_for
from student.spec import StudentError
from student.train import train
from teacher_cache.reader import CacheReader

CONFIGURATIONS = Path(__file__).parent.parent / "recipes" / "accelerate"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "one process"),
        ({"WORLD_SIZE": "1"}, "one process"),
        ({"WORLD_SIZE": "8"}, "DDP"),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP2"),
    ],
)
def test_the_launchers_variables_name_the_engine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert asked_for() == name


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for FSDP 1; set fsdp_version"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "ACCELERATE_USE_MEGATRON_LM, which is not used"),
    ],
)
def test_an_engine_that_is_not_used_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(StudentError, match=message):
        asked_for()


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed_does_not_become_another_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(StudentError, match=r"DeepSpeed, which is not installed.*\[deepspeed\]"):
        asked_for()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would join a group of processes")
def test_processes_that_would_each_train_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StudentError, match="2 processes were started, but each would train alone"):
        Engine.start("fp32", cpu=False)


def test_accumulation_that_the_loop_would_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(StudentError, match=r"gradient_accumulation_steps.* give .* a micro_batch"):
        Engine.start("fp32", cpu=True)


def test_sharding_without_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, small_encoder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    reader = CacheReader(write_cache(tmp_path))
    with pytest.raises(StudentError, match="FSDP needs a launcher"):
        train(stage_run(reader, tmp_path / "run"), reader, small_encoder)


@pytest.mark.parametrize(
    ("name", "engine"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("zero2", "DEEPSPEED")]
)
def test_published_configurations_are_for_eight_gpus_in_bf16(name: str, engine: str) -> None:
    config = load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))
    assert config.distributed_type == engine
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (1, 8, "bf16")
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if name == "zero2":
        assert config.deepspeed_config["zero_stage"] == 2
