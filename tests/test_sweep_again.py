"""A sweep that is run again: what was measured beside it stays, and arms begin from one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import copy
from small_caches import write_cache
from small_models import change_weights
from sweeping import COMMON, DONE, RECIPE, SWEEP, Sweeps, results

ONE_SEED = SWEEP.replace("[0, 1]", "[0]")


@pytest.fixture
def folder(tmp_path: Path, small_encoder: Path) -> Path:
    """A folder with a cache, a recipe, and a model of its own that the students begin from."""
    write_cache(tmp_path)
    copy(small_encoder, tmp_path / "body")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(init="./body", common=COMMON))
    (tmp_path / "sweep.toml").write_text(ONE_SEED)
    return tmp_path


@pytest.fixture
def sweeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Sweeps:
    return Sweeps(folder, monkeypatch, capsys)


def test_arms_that_began_from_another_model_are_not_compared(folder: Path, sweeps: Sweeps) -> None:
    out = folder / "out"
    assert sweeps(out).code == 0
    before = results(out)
    change_weights(
        folder / "body", "embeddings.word_embeddings.weight", lambda value: value.mul_(2)
    )
    assert sweeps(out).code == 0, "nothing is to be trained"
    more = 'name = "sweep"\n' + ONE_SEED + '\n[[arms]]\nname = "later"\nchange.run = [1]\n'
    more += "change.stages.1.learning_rate = 2e-2\n"
    refused = sweeps(out, file=sweeps.write(more))
    assert refused.code == 2
    assert "began from another ./body than lies in" in refused.err
    assert DONE not in refused.err
    assert results(out) == before


def test_measuring_again_keeps_what_was_measured_beside(folder: Path, sweeps: Sweeps) -> None:
    out = folder / "out"
    assert sweeps(out).code == 0
    file = out / results(out)["arms"][0]["runs"]["0"] / "stage-2" / "evaluation.json"
    found = json.loads(file.read_text())
    task = {"task": "sts", "head": "fc1", "score": 0.5}
    file.write_text(json.dumps({**found, "retention": {}, "tasks": [task]}))
    assert sweeps(out).code == 0
    again = json.loads(file.read_text())
    assert again == {**found, "tasks": [task]}
