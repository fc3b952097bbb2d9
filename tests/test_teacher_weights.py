"""Safetensors as teachers are read from them: whole, in shards, damaged, with other keys."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_weights, write_json, write_stella, write_weights

from teacher_cache.encoders import loading
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve


def teacher(folder: Path) -> Teacher:
    return resolve(TeacherSpec(name="stella-en-1.5b-v5", path=str(folder), width=40))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A whole folder, to break."""
    return write_stella(tmp_path / "model")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../other.safetensors"}, "expected a .* file beside it"),
        ({"a": "model.bin"}, "expected a .* file beside it"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
        ({}, "no `weight_map`"),
    ],
)
def test_an_index_that_names_no_shards_of_its_own_is_refused(
    own: Path, weight_map: dict[str, str], message: str
) -> None:
    (own / "model.safetensors").unlink()
    write_json(own / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(TeacherError, match=message):
        loading.inspect_files(teacher(own), own)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    sharded = write_stella(tmp_path, shards=2)
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.norm.weight"] = next(
        name for name in weight_map.values() if name != weight_map["model.norm.weight"]
    )
    write_json(index, {"weight_map": weight_map})
    with pytest.raises(TeacherError, match=r"model\.norm\.weight"):
        loading.inspect_files(teacher(sharded), sharded)


@pytest.mark.parametrize("kind", ["renamed", "missing", "surplus", "reshaped"])
def test_every_key_is_accounted_for(own: Path, kind: str) -> None:
    weights = read_weights(own)
    key = "model.layers.1.mlp.up_proj.weight"
    if kind in ("renamed", "missing"):
        taken = weights.pop(key)
        if kind == "renamed":
            weights["model.layers.1.mlp.up.weight"] = taken
    elif kind == "surplus":
        weights["lm_head.weight"] = weights["model.norm.weight"]
    else:
        weights[key] = np.ascontiguousarray(weights[key].T)
    write_weights(own, weights)
    message = {
        "renamed": r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\) and 1 that the model has "
        r"no place for \(model\.layers\.1\.mlp\.up\.weight\)",
        "missing": r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)$",
        "surplus": r"1 that the model has no place for \(lm_head\.weight\)",
        "reshaped": r"shape \(48, 80\), the model's configuration asks for \(80, 48\)",
    }[kind]
    with pytest.raises(TeacherError, match=message):
        loading.inspect_files(teacher(own), own)


def test_keys_without_their_prefix_are_refused(own: Path) -> None:
    weights = {key.removeprefix("model."): value for key, value in read_weights(own).items()}
    write_weights(own, weights)
    with pytest.raises(TeacherError, match=r"missing \(model\.embed_tokens\.weight, .*, …\)"):
        loading.inspect_files(teacher(own), own)


def test_pickled_cut_and_quantised_weights_are_refused(own: Path) -> None:
    path = own / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(TeacherError, match="not a whole safetensors file"):
        loading.inspect_files(teacher(own), own)
    weights: dict[str, Any] = read_weights(own / "2_Dense_40")
    write_weights(own, {key: value.astype(np.int8) for key, value in weights.items()})
    with pytest.raises(TeacherError, match="stored as I8"):
        loading.inspect_files(teacher(own), own)
    path.rename(own / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"pickled weights .* are not read"):
        loading.inspect_files(teacher(own), own)
