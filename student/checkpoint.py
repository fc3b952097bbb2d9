"""Checkpoints of a running stage: what it changes, the optimizer's state and the step; no pickle.

Frozen parameters are not stored: a resumed stage starts from the same student and overlays what
it had changed, and so does the stage's final model. Tensors are whole, whatever engine and however
many processes wrote them, so that another engine may go on. A checkpoint is written aside, synced
and renamed: it is whole or absent, and until it is there the one before it stays.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from student.durable import remove_folder, replace_folder
from student.run import differing
from student.spec import StudentError

KEEP = 2
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"

OptimizerState = dict[str, dict[str, Tensor]]
"""What the optimizer keeps of each parameter, by the parameter's name: whole tensors on the CPU."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best of the probes so far: after which step, and its score (greater is better)."""

    step: int
    score: float

    def is_below(self, score: float) -> bool:
        """Whether a score is better; vectors that are all alike have none (nan): the worst."""
        return score > self.score or (math.isnan(self.score) and not math.isnan(score))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, after `step` steps, which took `seconds`, interruptions left out."""

    folder: Path
    step: int
    best: Best | None
    seconds: float = 0.0

    def overlay(self, student: nn.Module) -> None:
        """Set the parameters that the stage changes to what they were."""
        parameters = dict(student.named_parameters())
        with torch.no_grad():
            for name, value in load_file(self.folder / WEIGHTS_FILE).items():
                parameters[name].copy_(value)

    def optimizer(self) -> OptimizerState:
        """The optimizer's state."""
        found: OptimizerState = {}
        for key, value in load_file(self.folder / OPTIMIZER_FILE).items():
            kind, name = key.split(":", 1)
            found.setdefault(name, {})[kind] = value
        return found


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: OptimizerState,
    facts: Mapping[str, Any],
    *,
    best: Best | None = None,
    seconds: float = 0.0,
) -> Checkpoint:
    """Write the checkpoint after `step` steps; the last few stay, and the best where there is one.

    `facts` (the cache's identity, the stage) are what `newest` will ask to find again; `seconds`
    is how long the steps took.
    """
    target = folder / f"step-{step:08d}"
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)
    aside = folder / f".{target.name}.tmp"
    aside.mkdir(parents=True)
    save_file(dict(weights), aside / WEIGHTS_FILE)
    flat = {f"{kind}:{n}": value for n, state in optimizer.items() for kind, value in state.items()}
    save_file(flat, aside / OPTIMIZER_FILE)
    kept = {"step": step, "best": None if best is None else asdict(best), "seconds": seconds}
    state = {**kept, **facts}
    (aside / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n")
    replace_folder(aside, target)
    written = Checkpoint(target, step, best, seconds)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        if old != _best_folder(written):
            remove_folder(old)
    return written


def newest(folder: Path, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint, if there is one.

    Raises:
        StudentError: it was written with other facts (another cache, another stage, another start).
    """
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    state = json.loads((found[-1] / STATE_FILE).read_text())
    if (name := differing(state, facts)) is not None:
        raise StudentError(
            f"{found[-1]} was written with another {name} ({state.get(name)}) than this run's "
            f"({facts[name]}); give another --out, or --restart to begin the stage anew"
        )
    best = None if state["best"] is None else Best(**state["best"])
    return Checkpoint(found[-1], state["step"], best, state.get("seconds", 0.0))


def best_of(last: Checkpoint) -> Checkpoint:
    """The checkpoint of the best probe so far.

    Raises:
        StudentError: it is not there.
    """
    folder = _best_folder(last)
    if folder is None or last.best is None or not folder.is_dir():
        raise StudentError(f"{last.folder.parent} holds no best checkpoint; --restart the stage")
    return Checkpoint(folder, last.best.step, last.best)


def _best_folder(last: Checkpoint) -> Path | None:
    return None if last.best is None else last.folder.with_name(f"step-{last.best.step:08d}")
