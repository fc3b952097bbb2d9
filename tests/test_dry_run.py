"""What a stage would cost, and what is refused, before a weight is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_caches import write_cache
from stage_runs import SPEC, stage_run

from student.plan import check_model, plan
from student.spec import StudentError
from student.stages import StageError
from student.train import train
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def weightless(small_encoder: Path, tmp_path: Path) -> Path:
    """The small encoder with weights that nothing can load."""
    folder = tmp_path / "weightless"
    shutil.copytree(small_encoder, folder)
    (folder / "model.safetensors").write_bytes(b"never read")
    return folder


OFF = {"cosine": 0, "similarity": 0, "relative": 0}


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (2, {"trains": ["fc1", "layers[-4]"]}, "layers[-4] matches none of the student's 3 layers"),
        (2, {"trains": ["fc1", "layers[3:]"]}, "layers[3:] matches none"),
        (2, {"trains": ["fc1", "layer[1]"]}, "there is no parameter group 'layer[1]'"),
        (2, {"trains": ["fc9"]}, "there is no parameter group 'fc9'; groups are text"),
        (1, {"trains": ["fc1", "fc2"]}, "none of its losses reaches; heads with losses: fc1"),
        (
            3,
            {"heads": {"fc2": OFF}},
            "trains heads.fc2.bias (and 1 more), which none of its losses",
        ),
        (
            3,
            {"trains": ["fc2"], "heads": {"fc1": OFF, "fc2": {"target": "fc1"}}},
            "fc2 is to learn from FC1, which no stage has trained yet",
        ),
        (3, {"longest": 2}, "only 0 of at most 2 tokens: the least that gives a batch is longest"),
        (
            3,
            {"closed_form": {"fc2": "fitted"}, "closed_form_rows": 5},
            "fc2 is 6 wide, but the cached vectors that it is to be fitted to have at most 5 dir",
        ),
    ],
)
def test_stage_that_does_not_fit_the_model_is_refused_before_its_weights_are_loaded(
    reader: CacheReader, weightless: Path, tmp_path: Path,
    number: int, changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    run = stage_run(reader, tmp_path / "run", number, **changes)
    for attempt in (lambda: train(run, reader, weightless), lambda: plan(run, reader, weightless)):
        with pytest.raises(StageError) as refused:
            attempt()
        assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_layer_that_the_student_would_keep_but_the_model_lacks_is_refused(
    reader: CacheReader, weightless: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, 1, SPEC.model_copy(update={"layers": (0, 3)}))
    with pytest.raises(StudentError, match="the model has layers 0 to 2"):
        check_model(run, reader, weightless)


def test_inputs_longer_than_the_models_positions_are_refused(
    reader: CacheReader, weightless: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    most = AutoConfig.from_pretrained(weightless).max_position_embeddings
    fits, longer = (SPEC.model_copy(update={"max_tokens": most + more}) for more in (0, 1))
    check_model(stage_run(reader, tmp_path, 1, fits), reader, weightless)
    with pytest.raises(StudentError, match=f"max_tokens is {most + 1}, but - has .* {most} pos"):
        check_model(stage_run(reader, tmp_path, 1, longer), reader, weightless)


def test_fc1_of_the_stage_before_may_be_learned_from(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    first = stage_run(reader, tmp_path, 1, steps=1)
    train(first, reader, small_encoder)
    heads = {"fc1": OFF, "fc2": {"target": "fc1"}, "fc3": OFF, "fc4": OFF}
    run = stage_run(reader, tmp_path, 3, trains=["fc2"], heads=heads)
    run = replace(run, init_from=str(first.folder))
    assert train(run, reader, small_encoder)


def test_memory_that_a_stage_would_need_follows_its_fields(
    reader: CacheReader, weightless: Path, tmp_path: Path
) -> None:
    def activations(**changes: Any) -> int:
        return int(
            plan(stage_run(reader, tmp_path, **changes), reader, weightless)["activation_bytes"]
        )

    # 16 texts of 64 tokens, 32 wide, 3 layers of 16 fp32 numbers each.
    assert activations() == 4 * 16 * 64 * 32 * 3 * 16
    assert activations(trains=["heads", "layers[-1]"]) == activations() / 3
    assert activations(trains=["heads"]) == 0
    assert activations(micro_batch=2) == activations() / 8
    # The inputs of three layers, and one layer computed again.
    assert activations(gradient_checkpointing=True) == activations() * 19 / 48
