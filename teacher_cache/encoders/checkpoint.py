"""Safetensors on disk → tensors, with every key accounted for both ways. Never a pickle.

Headers are read apart from weights: names and shapes are checked in milliseconds, before the first
gigabyte moves. Sharded checkpoints are read by their index, which must agree with its shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from teacher_cache.teachers import TeacherError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FLOATS = {"F64", "F32", "F16", "BF16"}
_NAMED = 3

Shape = tuple[int, ...]
Json = TypeVar("Json", dict[str, Any], list[Any])


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies, and its shape."""

    path: Path
    shape: Shape


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The headers of a folder's weights. `files` are all that were read, the index included."""

    folder: Path
    files: tuple[Path, ...]
    entries: Mapping[str, Entry]


def read_json(path: Path, kind: type[Json]) -> Json:
    """A JSON file that holds an object (`dict`) or a list (`list`).

    Raises:
        TeacherError: it is missing, not JSON, or of another kind.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TeacherError(f"{path} is missing from the model's folder") from None
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, kind):
        raise TeacherError(
            f"{path} should hold a {kind.__name__}, it holds a {type(data).__name__}"
        )
    return data


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of `model.safetensors`, or of the shards that its index names.

    Raises:
        TeacherError: no safetensors, a damaged file, a tensor that is no floating-point number, or
            an index that disagrees with its shards.
    """
    if (folder / SINGLE_FILE).is_file():
        path = folder / SINGLE_FILE
        return Checkpoint(folder, (path,), _read_header(path))
    index = folder / INDEX_FILE
    if not index.is_file():
        raise TeacherError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; pickled weights (*.bin, *.pt) "
            "are not read: convert them to safetensors"
        )
    weight_map = read_json(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TeacherError(f"{index} has no `weight_map` of tensor names to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise TeacherError(f"{index} names {name!r}; expected a *.safetensors file beside it")
        if not (folder / name).is_file():
            raise TeacherError(f"{folder / name} is missing; {INDEX_FILE} names it")
    entries: dict[str, Entry] = {}
    for name in names:
        header = _read_header(folder / name)
        mapped = {key for key, file in weight_map.items() if file == name}
        _compare(mapped, set(header), f"{folder / name}, against {INDEX_FILE}")
        entries |= header
    return Checkpoint(folder, (index, *(folder / name for name in names)), entries)


def account(checkpoint: Checkpoint, expected: Mapping[str, Shape]) -> None:
    """Hold a checkpoint's names and shapes against those of the model it should fill.

    Raises:
        TeacherError: a key is missing, one is there that the model has no place for, or a shape
            differs. Each is named.
    """
    _compare(set(expected), set(checkpoint.entries), str(checkpoint.folder))
    for key, shape in expected.items():
        found = checkpoint.entries[key].shape
        if found != shape:
            raise TeacherError(
                f"{checkpoint.entries[key].path}: {key} has shape {found}, "
                f"the model's configuration asks for {shape}"
            )


def read_tensors(
    checkpoint: Checkpoint, prefix: str, *, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors under `prefix`, named without it, one at a time, each cast as it is read.

    No two copies of the weights exist: what is held beyond the answer is one tensor.
    """
    for path in checkpoint.files:
        keys = [
            key
            for key, entry in checkpoint.entries.items()
            if entry.path == path and key.startswith(prefix)
        ]
        if not keys:
            continue
        with _opened(path) as file:
            for key in keys:
                tensor: torch.Tensor = file.get_tensor(key)
                yield key.removeprefix(prefix), tensor.to(device=device, dtype=dtype)


def _read_header(path: Path) -> dict[str, Entry]:
    entries = {}
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - a safe_open is no mapping
            part = file.get_slice(key)
            if part.get_dtype() not in _FLOATS:
                raise TeacherError(
                    f"{path}: {key} is stored as {part.get_dtype()}; expected one of "
                    f"{', '.join(sorted(_FLOATS))}: quantised weights are not read"
                )
            entries[key] = Entry(path, tuple(part.get_shape()))
    return entries


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"{path} is not a whole safetensors file: {error}") from error


def _compare(expected: set[str], found: set[str], where: str) -> None:
    missing, surplus = sorted(expected - found), sorted(found - expected)
    if missing or surplus:
        parts = [
            f"{len(keys)} {word} ({', '.join(keys[:_NAMED])}{', …' if len(keys) > _NAMED else ''})"
            for keys, word in ((missing, "missing"), (surplus, "that the model has no place for"))
            if keys
        ]
        raise TeacherError(f"{where}: of {len(expected)} expected keys, {' and '.join(parts)}")
