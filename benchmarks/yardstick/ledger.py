"""What was done so far: a file for each finished piece of work, named by all that decides it.

Run again, the yardstick finds there what it need not do again; what a change of a recipe, a
version or the code has made stale has another name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from student.durable import replace_text
from yardstick.arms import Arm, arm_of, digest, facts_of

Purpose = Literal["calibrate", "tune", "train", "long"]


@dataclass(frozen=True, slots=True)
class Job:
    """One training, timed and perhaps measured, in a process of its own.

    `steps` are those of each stage, `tasks` the set to measure on (None: only timed), `rate` the
    largest learning rate. `seconds` is about how long it will take: it decides nothing.
    """

    purpose: Purpose
    arm: str
    layers: tuple[int, ...]
    rate: float
    steps: Mapping[str, int]
    seed: int = 0
    tasks: Literal["dev", "test"] | None = None
    threads: int = 1
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """For people, and for files."""
        layers = "-".join(map(str, self.layers))
        arm = re.sub(r"[^a-z0-9]+", "-", self.arm.lower())
        return f"{self.purpose}-{arm}-{layers}-{self.rate:g}-seed{self.seed}"

    @property
    def of(self) -> Arm:
        """The arm."""
        return arm_of(self.arm)

    def decided_by(self) -> dict[str, Any]:
        """All that decides the outcome but the material."""
        own = asdict(self)
        del own["seconds"]
        return {**own, "layers": list(self.layers), **facts_of(self.of, self.layers)}


@dataclass(frozen=True, slots=True)
class Ledger:
    """The finished jobs of a work folder, under one material (by its name)."""

    folder: Path
    material: str

    def file(self, job: Job) -> Path:
        """Where the result of a job is, or will be."""
        key = digest({**job.decided_by(), "material": self.material})
        return self.folder / "done" / f"{job.name}-{key}.json"

    def find(self, job: Job) -> dict[str, Any] | None:
        """The result of a job, if it is done."""
        path = self.file(job)
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def keep(self, job: Job, result: Mapping[str, Any]) -> None:
        """Write down a result, whole or not at all."""
        path = self.file(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1) + "\n")
