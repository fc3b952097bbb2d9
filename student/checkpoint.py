"""Checkpoints of a running stage: what changed, the optimizer's state and the step; no pickle.

Frozen parameters are not stored: a resumed stage starts from the same student and overlays what
it had trained. A checkpoint is written aside and renamed, so it is whole or absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from student.spec import StudentError

KEEP = 2
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


def save(
    folder: Path,
    step: int,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write the checkpoint after `step` steps, and remove all but the last few.

    `facts` (the cache's identity, the stage) are what `restore` will ask to find again.
    """
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in trained.items()}, aside / WEIGHTS_FILE)
    save_file(_optimizer_tensors(trained, optimizer), aside / OPTIMIZER_FILE)
    (aside / STATE_FILE).write_text(json.dumps({"step": step, **facts}, indent=1) + "\n")
    replace_folder(aside, target)
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)


def restore(
    folder: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> int:
    """Load the newest checkpoint, if there is one; give the number of steps that are done.

    Raises:
        StudentError: it was written with other facts (another cache, another stage).
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    state = json.loads((newest / STATE_FILE).read_text())
    step: int = state.pop("step")
    for name, value in facts.items():
        if state.get(name) != value:
            raise StudentError(
                f"{newest} was written with another {name} ({state.get(name)}) than this run's "
                f"({value}); give another --out, or --restart to begin the stage anew"
            )
    weights = load_file(newest / WEIGHTS_FILE)
    tensors = load_file(newest / OPTIMIZER_FILE)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
            optimizer.state[parameter] = _state_of(name, tensors)
    return step


def replace_folder(aside: Path, target: Path) -> None:
    """Put a finished folder in its place; what was there goes."""
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _optimizer_tensors(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{key}:{name}": value.contiguous()
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
    }


def _state_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    suffix = f":{name}"
    return {key.removesuffix(suffix): t for key, t in tensors.items() if key.endswith(suffix)}
