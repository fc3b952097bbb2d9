"""What a stage may vary, option by option, against float64 oracles."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_caches import write_cache
from stage_runs import QUICK, SPEC, stage_run, trained
from test_losses import cosine_oracle, relative_oracle, similarity_oracle, vectors
from torch import Tensor

from student.closed_form import Moments, ridge, start_heads
from student.encoding import encode
from student.model import create
from student.order import Order
from student.stages import LossWeights, stage
from student.step import total_loss
from student.targets import weigh
from student.train import train
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def weighed_oracle(stored: np.ndarray, left: float, right: float) -> np.ndarray:
    """The target of `write_cache`'s two teachers, 12 and 8 wide."""
    blocks = [left * unit(stored[:, :12]), right * unit(stored[:, 12:])]
    return unit(np.concatenate(blocks, axis=1))


def test_teachers_weights_scale_their_unit_blocks(reader: CacheReader) -> None:
    stored = reader.vectors(range(30))
    found = weigh(torch.from_numpy(stored), reader.blocks(), {"left": 3.0, "right": 0.5}).numpy()
    assert np.abs(found - weighed_oracle(stored, 3, 0.5)).max() < 1e-6
    # Two texts are as similar as the mean of the teachers' cosines, weighted by the squares.
    left, right = (unit(reader.vectors(range(30), [name])) for name in ("left", "right"))
    expected = (9 * left @ left.T + 0.25 * right @ right.T) / 9.25
    assert np.abs(found @ found.T - expected).max() < 2e-3  # blocks are stored in float16


@pytest.mark.parametrize("weights", [{}, {"left": 1.0}, {"left": 2.5, "right": 2.5}])
def test_teachers_of_one_weight_leave_the_target_as_it_is_stored(
    reader: CacheReader, weights: dict[str, float]
) -> None:
    stored = torch.from_numpy(reader.vectors(range(5)))
    assert weigh(stored, reader.blocks(), weights) is stored


@pytest.mark.parametrize("left", [1.0, 20.0])
def test_teachers_weights_reach_the_losses_and_the_closed_form(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, left: float
) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    rows = np.array(reader.train_rows)
    pooled = encode(student, reader.texts(rows), [])["pooled"]
    target = weighed_oracle(reader.vectors(rows), left, 1.0)
    moments = Moments(32, 20)
    moments.add(pooled, target)
    solved = np.concatenate([pooled, np.ones((len(rows), 1))], axis=1) @ ridge(moments).T
    batch = Order(len(rows), QUICK["batch_size"], 0).rows_of(0)
    expected = float((1 - (unit(solved[batch]) * target[batch]).sum(axis=1)).mean())

    losses: list[float] = []
    run = stage_run(
        reader, tmp_path, 1, steps=1, closed_form=["fc1"], teacher_weights={"left": left}
    )
    train(
        run, reader, small_encoder,
        on_step=lambda done, m: done and losses.append(m["fc1.cosine"]),
    )  # fmt: skip
    assert losses == pytest.approx([expected], abs=1e-5)


def heads(widths: dict[str, int]) -> dict[str, Tensor]:
    return {name: vectors(20, width, seed) for seed, (name, width) in enumerate(widths.items())}


def test_total_is_the_sum_of_heads_each_with_its_share_and_its_targets() -> None:
    spec = stage(
        3,
        {
            "heads": {
                "fc1": {"share": 0.5},
                "fc2": {"target": "fc1", "share": 3},
                "fc3": {"target": ["teachers", "fc1"]},
                "fc4": {"similarity": 0, "relative": 0},
                "fc1[:5]": {"similarity": 7},
            }
        },
    )
    target = vectors(20, 12, 9)
    found = heads({"fc1": 12, "fc2": 6, "fc3": 4})
    found = {name: value.requires_grad_() for name, value in found.items()}
    found["fc1[:5]"] = found["fc1"][:, :5]
    total, metrics = total_loss(found, {"teachers": target}, spec)
    total.backward()

    again = {name: found[name].detach().clone().requires_grad_() for name in ("fc1", "fc2", "fc3")}
    fc1, fixed = again["fc1"], again["fc1"].detach()

    def reduced(student: Tensor, teacher: Tensor) -> Tensor:
        return 200 * similarity_oracle(student, teacher) + 20 * relative_oracle(student, teacher)

    expected = (
        0.5 * (10 * cosine_oracle(fc1, target) + reduced(fc1, target))
        + 3 * reduced(again["fc2"], fixed)
        + reduced(again["fc3"], target)
        + reduced(again["fc3"], fixed)
        + 7 * similarity_oracle(fc1[:, :5], target)
    )
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    for name, value in again.items():
        torch.testing.assert_close(found[name].grad, value.grad, rtol=1e-9, atol=1e-12)
    assert metrics["loss"] == total.item()
    assert {"fc2.similarity", "fc3.teachers.relative", "fc3.fc1.relative"} <= set(metrics)
    assert metrics["fc3.fc1.similarity"] == pytest.approx(
        similarity_oracle(again["fc3"], fixed).item()
    )


@pytest.mark.parametrize("ties", ["exclude", "include"])
def test_rule_for_ties_is_the_recipes(ties: str) -> None:
    spec = stage(1, {"heads": {"fc1": {"cosine": 0, "similarity": 0, "margin": 0.3, "ties": ties}}})
    # A teacher to whom all texts are alike orders no pair.
    total, _ = total_loss({"fc1": vectors(6, 4, 1)}, {"teachers": torch.ones(6, 4)}, spec)
    assert (total == 0) == (ties == "exclude")


def test_one_target_may_be_written_without_a_list() -> None:
    assert LossWeights(target="fc1") == LossWeights(target=("fc1",))  # type: ignore[arg-type]


def test_what_learns_from_fc1_leaves_fc1_alone(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    """A stage of reduced heads on FC1's vectors changes them alone, whatever the teachers are."""
    off = {"cosine": 0, "similarity": 0, "relative": 0}
    changes = {
        "trains": ["fc2", "fc3"],
        "closed_form": ["fc1"],
        "heads": {"fc1": off, "fc2": {"target": "fc1"}, "fc3": {"target": "fc1"}, "fc4": off},
    }
    before = create(SPEC, small_encoder, 20, seed=0)
    start_heads(
        before, reader, reader.teachers, {"fc1": "ridge"},
        rows=16_384, seed=0, init=small_encoder, teacher_weights={},
    )  # fmt: skip
    after = trained(reader, small_encoder, tmp_path, **changes)
    record = json.loads((tmp_path / "stage-3" / "run.json").read_text())
    assert record["trained_heads"] == ["fc2", "fc3", "fc1"], "a solved head can be used too"
    for name, value in before.state_dict().items():
        assert torch.equal(after[name], value) != name.startswith(("heads.fc2", "heads.fc3")), name


def test_a_prefix_trains_its_columns_alone_and_is_measured(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    off = {"cosine": 0, "similarity": 0, "relative": 0}
    changes = {
        "trains": ["fc1"],
        "weight_decay": 0,
        "heads": {"fc2": off, "fc3": off, "fc4": off, "fc1": off, "fc1[:8]": {"similarity": 200}},
    }
    before = create(SPEC, small_encoder, 20, seed=0).state_dict()
    after = trained(reader, small_encoder, tmp_path, **changes)
    for name, value in before.items():
        if name.startswith("heads.fc1."):
            assert torch.equal(after[name][8:], value[8:])
            assert not torch.equal(after[name][:8], value[:8])
        else:
            assert torch.equal(after[name], value), name
    record = json.loads((tmp_path / "stage-3" / "run.json").read_text())
    assert record["trained_heads"] == ["fc1[:8]"]


def test_columns_of_a_head_are_its_first_ones(reader: CacheReader, small_encoder: Path) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    texts = reader.texts(range(9))
    found = encode(student, texts, ["fc1[:8]", "fc1", "fc2[:1]"])
    assert np.array_equal(found["fc1[:8]"], found["fc1"][:, :8])
    assert found["fc2[:1]"].shape == (9, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": {"fc2": {"share": 9}}},
        {"heads": {"fc2": {"target": "fc1"}}},
        {"heads": {"fc1[:4]": {"similarity": 200}}},
        {"teacher_weights": {"left": 4}},
        {"vector_dropout": 0.3},
        {"schedule": "linear"},
        {"schedule": "constant"},
        {"clip": 0.01},
        {"clip": None},
        {"weight_decay": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learned_and_nothing_that_is_frozen(
    reader: CacheReader,
    small_encoder: Path,
    plain: dict[str, Tensor],
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    start = create(SPEC, small_encoder, 20, seed=0).state_dict()
    trains = ["layers[1:]", "heads"]
    after = trained(reader, small_encoder, tmp_path, trains=trains, **changes)
    moved = {name for name, value in after.items() if not torch.equal(start[name], value)}
    named = ("heads.", "text.encoder.layer.1.", "text.encoder.layer.2.")
    assert moved == {name for name in after if name.startswith(named)}
    assert any(not torch.equal(after[name], plain[name]) for name in moved)


@pytest.fixture(scope="module")
def plain(
    reader: CacheReader, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("plain")
    return trained(reader, small_encoder, out, trains=["layers[1:]", "heads"])


def test_gradients_of_any_norm_may_be_left_alone(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    """A recipe cannot write None; infinity it can."""
    none = trained(reader, small_encoder, tmp_path / "none", clip=None)
    infinite = trained(reader, small_encoder, tmp_path / "inf", clip=math.inf)
    assert all(torch.equal(infinite[name], value) for name, value in none.items())


def test_options_at_their_defaults_change_no_bit(
    reader: CacheReader, small_encoder: Path, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    changes = {
        "teacher_weights": {"left": 2, "right": 2},
        "heads": {name: {"share": 1, "target": "teachers"} for name in ("fc1", "fc2")},
        "vector_dropout": 0,
        "gather": False,  # one process has the whole batch
        "gradient_checkpointing": True,
    }
    after = trained(reader, small_encoder, tmp_path, trains=["layers[1:]", "heads"], **changes)
    assert all(torch.equal(after[name], value) for name, value in plain.items())
