"""FC1 begins with the teacher's own head, where the student's body is that teacher's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_stella
from safetensors.torch import load_file, save_file
from small_caches import SENTENCES
from stage_runs import stage_run

from data.corpus import Corpus, CorpusSpec
from student.closed_form import Moments, copied, start_heads
from student.encoding import encode
from student.model import create
from student.spec import StudentSpec
from student.stages import StageError
from student.train import train
from teacher_cache.build import Options, build
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import TeacherSpec, resolve

SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4, "fc4": 3}, max_tokens=32)
FITTED, STELLA = slice(0, 12), slice(12, 52)


@pytest.fixture(scope="module")
def stella(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stella(tmp_path_factory.mktemp("stella"))


@pytest.fixture(scope="module")
def reader(stella: Path, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """A cache of a fitted teacher, 12 wide, and of Stella, 40 wide."""
    folder = tmp_path_factory.mktemp("cache")
    lines = (json.dumps({"text": text}) + "\n" for text in SENTENCES[::2])
    (folder / "texts.jsonl").write_text("".join(lines))
    sources = [{"name": "made", "path": str(folder / "texts.jsonl")}]
    corpus = Corpus(CorpusSpec.model_validate({"sources": sources, "held_out": 0.2}))
    specs = [
        {"name": "fitted", "encoder": "tfidf-svd", "width": 12, "sample": 60},
        {"name": "stella-en-1.5b-v5", "path": str(stella), "width": 40, "max_tokens": 32}
        | {"dtype": "float32", "prompts": {"default": ""}},
    ]
    teachers = [resolve(TeacherSpec.model_validate(spec)) for spec in specs]
    build(folder / "cache", corpus, teachers, options=Options(rows_per_shard=64))
    return CacheReader(folder / "cache")


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def started(reader: CacheReader, init: Path, way: str) -> tuple[np.ndarray, np.ndarray]:
    """FC1's vectors of the held-out texts as it starts, and its parameters, bias last."""
    student = create(SPEC, init, 52, seed=0)
    start_heads(
        student, reader, reader.teachers, {"fc1": way},  # type: ignore[dict-item]
        rows=10**6, seed=0, init=init, teacher_weights={},
    )  # fmt: skip
    found = encode(student, reader.texts(reader.held_out_rows), ["fc1"])["fc1"]
    weight, bias = student.heads["fc1"].parameters()
    return found, torch.cat([weight, bias[:, None]], dim=1).detach().numpy()


def test_copied_block_has_the_teachers_own_directions(reader: CacheReader, stella: Path) -> None:
    target = reader.vectors(reader.held_out_rows)
    copy, copy_TG = started(reader, stella, "copy")
    ridge, ridge_TG = started(reader, stella, "ridge")

    def cosines(found: np.ndarray, columns: slice) -> np.ndarray:
        return (unit(found[:, columns]) * unit(target[:, columns])).sum(axis=1)

    # The cache is in float16: 1e-4 is its rounding.
    assert cosines(copy, STELLA).min() > 1 - 1e-4
    assert cosines(copy, STELLA).mean() > cosines(ridge, STELLA).mean()
    assert np.array_equal(copy_TG[FITTED], ridge_TG[FITTED])
    assert cosines(copy, slice(0, 52)).mean() > 0.95


def test_copied_head_has_the_length_that_is_nearest_to_the_target() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((50, 6)) + 1
    head = rng.standard_normal((4, 7))
    outputs = np.concatenate([states, np.ones((50, 1))], axis=1) @ head.T
    target = np.concatenate([rng.standard_normal((50, 3)), 0.7 * unit(outputs)], axis=1)
    moments = Moments(6, 7)
    moments.add(states.astype(np.float32), target)
    scaled, agreement = copied(head, moments, slice(3, 7))
    factor = scaled[0, 0] / head[0, 0]
    assert np.allclose(scaled, factor * head)

    def distance(factor: float) -> float:
        return float(((factor * outputs - target[:, 3:]) ** 2).sum())

    assert distance(factor) < min(distance(0.999 * factor), distance(1.001 * factor))
    assert agreement == pytest.approx(
        (outputs * target[:, 3:]).sum() / np.sqrt((outputs**2).sum() * (target[:, 3:] ** 2).sum()),
        rel=1e-5,
    )


def test_stage_begins_with_the_copy(reader: CacheReader, stella: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    run = stage_run(
        reader, tmp_path, 1, SPEC, steps=1, learning_rate=1e-9, closed_form={"fc1": "copy"}
    )
    train(run, reader, stella, on_step=lambda done, m: done and losses.append(m["fc1.cosine"]))
    assert losses[0] < 0.05


def test_head_that_does_not_give_the_teachers_vectors_is_refused(
    reader: CacheReader, stella: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(stella, other)
    file = other / "2_Dense_40" / "model.safetensors"
    head = load_file(file)
    generator = torch.Generator().manual_seed(1)
    head["linear.weight"] = torch.randn(40, 48, generator=generator)
    save_file(head, file)
    run = stage_run(reader, tmp_path / "run", 1, SPEC, closed_form={"fc1": "copy"})
    message = r"2_Dense_40.*does not give the vectors that stella-en-1\.5b-v5 has.*agreement -?0\."
    with pytest.raises(StageError, match=message):
        train(run, reader, other)
    assert not run.model.exists()

    save_file({"linear.weight": head["linear.weight"][:3], "linear.bias": torch.ones(3)}, file)
    with pytest.raises(StageError, match=r"expected a head from 48 to 40, found \(3, 48\)"):
        train(run, reader, other)
    save_file({"weight": torch.ones(3)}, file)
    with pytest.raises(StageError, match=r"holds no head: 'linear\.weight'"):
        train(run, reader, other)


def test_copy_without_such_a_head_is_refused_before_a_model_is_loaded(
    reader: CacheReader, stella: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(stella, bare)
    shutil.rmtree(bare / "2_Dense_40")
    (bare / "model.safetensors").write_bytes(b"never read")
    run = stage_run(reader, tmp_path / "run", 1, SPEC, closed_form={"fc1": "copy"})
    with pytest.raises(StageError, match=r"no teacher's head to copy in .*2_Dense_40/model"):
        train(run, reader, bare)
    pruned = SPEC.model_copy(update={"layers": (0, 2)})
    run = stage_run(reader, tmp_path / "run", 1, pruned, closed_form={"fc1": "copy"})
    with pytest.raises(StageError, match=r"the student keeps layers \[0, 2\] of it"):
        train(run, reader, bare)
