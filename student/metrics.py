"""The metrics of a stage as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from student.durable import replace_text

METRICS_FILE = "metrics.jsonl"


class Log:
    """Writes a stage's metrics; silent where it is not `active`, on all processes but the first.

    A resumed stage drops the lines after its checkpoint: each step stands there once.
    """

    def __init__(self, folder: Path, active: bool, done: int) -> None:
        self.folder = folder
        self.active = active
        self.done = done

    def __enter__(self) -> Log:
        self.lines: TextIO | None = None
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / METRICS_FILE
            replace_text(path, "".join(_lines_until(path, self.done)))
            self.lines = path.open("a", encoding="utf-8")
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done + 1)
        return self

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add a step's metrics."""
        if self.lines is not None:
            self.lines.write(json.dumps({"step": step, **metrics}) + "\n")
            self.lines.flush()
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        if self.lines is not None:
            self.lines.close()
            self.board.close()


def last_line(folder: Path) -> dict[str, float]:
    """The metrics that were written last; none where there are none."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    # What stands behind the last line break is torn: its writer was killed, or is writing it.
    whole = lines[:-1]
    return json.loads(whole[-1]) if whole else {}


def _lines_until(path: Path, step: int) -> list[str]:
    if step == 0 or not path.exists():
        return []
    kept = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            # The last line of a run that was killed may be torn.
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
    return kept
