"""What is frozen costs nothing: no graph, no gradient, no optimizer state. Counted in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_caches import SENTENCES, write_cache
from small_models import write_encoder
from stage_runs import SPEC, stage_run
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from student.model import Student, create
from student.train import Settings, train
from teacher_cache.reader import CacheReader

LAYERS = 5


@pytest.fixture(scope="module")
def deep_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("deep"), layers=LAYERS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


class Saved:
    """Bytes of activations that graphs keep for their backward pass: where, now, and at most."""

    def __init__(self) -> None:
        self.by_module: Counter[str] = Counter()
        self.inside = ["outside"]
        self.now = self.most = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor):
            yield

    def watch(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.inside.append(name))
        module.register_forward_hook(lambda *_: self.inside.pop() and None)


class _Kept:
    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        # A parameter is in memory anyway.
        self.bytes = 0 if tensor._base is not None and tensor._base.is_leaf else tensor.nbytes
        self.bytes *= not isinstance(tensor, nn.Parameter)
        if self.bytes:
            saved.by_module[saved.inside[-1]] += self.bytes
        saved.now += self.bytes
        saved.most = max(saved.most, saved.now)

    def __del__(self) -> None:
        self.saved.now -= self.bytes


def saved_by(folder: Path, groups: list[str], *, again: bool = False) -> Counter[str]:
    """Bytes that a forward pass keeps, by the part of the body it is in."""
    student: Student = create(SPEC, folder, 20, seed=0).train()
    trained = student.train_only(groups)
    if again:
        student.compute_layers_again(trained)
    saved = Saved()
    saved.watch("embeddings", student.text.embeddings)
    for number, layer in enumerate(student.text.encoder.layer):
        saved.watch(f"layer {number}", layer)
    batch = student.batch(SENTENCES[:12])
    with saved.counting():
        pooled = student.pooled(batch)
    assert pooled.requires_grad == bool(saved.by_module)
    return saved.by_module


def test_stage_1_keeps_nothing_of_the_body(deep_encoder: Path) -> None:
    assert saved_by(deep_encoder, ["fc1"]) == {}


def test_stage_2_keeps_activations_of_the_last_three_layers_only(deep_encoder: Path) -> None:
    saved = saved_by(deep_encoder, ["fc1", "layers[-3:]"])
    assert set(saved) == {"layer 2", "layer 3", "layer 4", "outside"}
    whole = saved_by(deep_encoder, ["text", "heads"])
    assert set(whole) == {"embeddings", "outside", *(f"layer {i}" for i in range(LAYERS))}
    # The layers above the first that trains keep what they would keep anyway; it keeps no more.
    for layer in ("layer 3", "layer 4", "outside"):
        assert saved[layer] == whole[layer]
    assert saved["layer 2"] <= whole["layer 2"]


def test_layers_computed_again_keep_their_inputs_and_frozen_ones_nothing(
    deep_encoder: Path,
) -> None:
    plain = saved_by(deep_encoder, ["layers[-3:]"])
    again = saved_by(deep_encoder, ["layers[-3:]"], again=True)
    assert set(again) == set(plain)
    for layer in ("layer 2", "layer 3", "layer 4"):
        assert again[layer] < 0.15 * plain[layer]


def test_only_what_trains_has_optimizer_state(
    reader: CacheReader, deep_encoder: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, 2, steps=2)
    kept: set[str] = set()

    def look(done: int, _: object) -> None:
        if done == 2:
            (file,) = run.checkpoints.glob("*/optimizer.safetensors")
            with safe_open(file, "pt") as tensors:
                kept.update(name.partition(":")[2] for name in tensors.keys())  # noqa: SIM118

    train(run, reader, deep_encoder, settings=Settings(save_every=1), on_step=look)
    student = create(SPEC, deep_encoder, 20, seed=0)
    assert kept == set(student.parameters_of(["fc1", "layers[-3:]"]))


@pytest.mark.parametrize(
    ("changes", "share"), [({"micro_batch": 4}, 0.4), ({"gradient_checkpointing": True}, 0.4)]
)
def test_fields_that_save_memory_do(
    reader: CacheReader, deep_encoder: Path, tmp_path: Path, changes: dict[str, Any], share: float
) -> None:
    most = []
    for name, fields in (("plain", {}), ("saving", changes)):
        saved = Saved()
        with saved.counting():
            train(stage_run(reader, tmp_path / name, steps=2, **fields), reader, deep_encoder)
        most.append(saved.most)
    assert most[1] < share * most[0]


def test_bodies_draw_nothing_at_random(tmp_path: Path) -> None:
    """Some families keep the share of dropped attention as a number, not as a module."""
    from checkpoints import write_stella

    student = create(SPEC, write_stella(tmp_path, attention_dropout=0.5), 20, seed=0).train()
    batch = student.batch(["a text of some words"] * 3)
    assert torch.equal(student.pooled(batch), student.pooled(batch))
    assert torch.equal(student.pooled(batch), student.eval().pooled(batch))
