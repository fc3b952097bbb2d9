"""A step that saves memory is the plain step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_caches import write_cache
from stage_runs import assert_same_but_for_rounding, stage_run, trained
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertModel

from student.dropout import kept_columns
from student.model import load
from student.stages import StageError
from student.train import Settings, train
from teacher_cache.reader import CacheReader

# Everything at once that a replay could get wrong: which row is whose, and what it lost.
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "vector_dropout": 0.2,
    "teacher_weights": {"left": 2},
    "heads": {
        "fc2": {"target": ["teachers", "fc1"]},
        "fc3": {"target": "fc1"},
        "fc1[:5]": {"similarity": 3},
    },
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def plain(
    reader: CacheReader, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    return trained(reader, small_encoder, tmp_path_factory.mktemp("plain"), **OPTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 8},
        {"micro_batch": 16},
        {"micro_batch": 4, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_micro_batches_learn_what_the_whole_batch_learns(
    reader: CacheReader,
    small_encoder: Path,
    plain: dict[str, Tensor],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    after = trained(reader, small_encoder, tmp_path, **OPTIONS, **changes)
    assert_same_but_for_rounding(after, plain)


@pytest.mark.parametrize(("number", "times"), [(1, 1), (2, 2)])
def test_body_runs_a_second_time_only_where_it_trains(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, number: int, times: int
) -> None:
    runs = 0

    def count(module: torch.nn.Module, *_: object) -> None:
        nonlocal runs
        runs += isinstance(module, BertModel)

    handle = register_module_forward_hook(count)
    try:
        trained(reader, small_encoder, tmp_path, number, steps=3, micro_batch=4, probe_every=0)
    finally:
        handle.remove()
    assert runs == times * 3 * 4


@pytest.mark.parametrize("number", [1, 2])
def test_stages_of_fewer_parameters_learn_the_same_in_micro_batches(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, number: int
) -> None:
    whole = trained(reader, small_encoder, tmp_path / "whole", number)
    parts = trained(reader, small_encoder, tmp_path / "parts", number, micro_batch=2)
    assert_same_but_for_rounding(parts, whole)


def test_layers_computed_again_give_the_same_gradients_bit_for_bit(
    reader: CacheReader, small_encoder: Path, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    after = trained(reader, small_encoder, tmp_path, **OPTIONS, gradient_checkpointing=True)
    assert all(torch.equal(after[name], value) for name, value in plain.items())


def test_stage_with_dropout_resumes_bit_for_bit_under_another_micro_batch(
    reader: CacheReader, small_encoder: Path, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, **OPTIONS)

    def stop(done: int, _: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, reader, small_encoder, settings=Settings(save_every=1), on_step=stop)
    # The checkpoint of a step is written after it was told of.
    steps: list[int] = []
    train(run, reader, small_encoder, on_step=lambda done, _: steps.append(done))
    assert steps == [1, 2, 3, 4]
    again = load(run.model).state_dict()
    assert all(torch.equal(again[name], value) for name, value in plain.items())

    run = stage_run(reader, tmp_path / "other", **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        train(run, reader, small_encoder, settings=Settings(save_every=1), on_step=stop)
    run = stage_run(reader, tmp_path / "other", **OPTIONS, micro_batch=4)
    assert train(run, reader, small_encoder)
    assert_same_but_for_rounding(load(run.model).state_dict(), plain)


def test_dropout_is_a_pure_function_of_seed_step_and_place() -> None:
    def kept(seed: int, step: int, process: int = 0, processes: int = 1) -> Tensor:
        return kept_columns(
            seed, step, rows=64, width=500, share=0.2, process=process, processes=processes
        )

    whole = kept(1, 7)
    assert torch.equal(kept(1, 7), whole)
    assert not torch.equal(kept(1, 8), whole)
    assert not torch.equal(kept(2, 7), whole)
    for process in range(4):
        assert torch.equal(kept(1, 7, process, 4), whole[16 * process :][:16])
    assert set(whole.unique().tolist()) == {0.0, 1.25}
    assert float((whole == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(whole.mean()) == pytest.approx(1, abs=0.01)
    # Each text loses columns of its own.
    assert len(whole.unique(dim=0)) == 64


def test_micro_batch_that_does_not_divide_the_share_is_refused_before_a_model_is_loaded(
    reader: CacheReader, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, micro_batch=5)
    with pytest.raises(StageError, match="micro_batch is 5, which does not divide the 16 texts"):
        train(run, reader, tmp_path / "no model here")


def test_loss_that_is_no_number_stops_a_step_in_micro_batches_too(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, micro_batch=4, learning_rate=1e30, clip=None)
    with pytest.raises(StageError, match=r"loss of step \d is nan.*its rows begin \d+, \d+"):
        train(run, reader, small_encoder)
    assert not run.model.exists()
