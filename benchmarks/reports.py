"""How a benchmark hands over what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def publish(lines: Sequence[str], path: Path | None) -> None:
    """Print a report, and save it where a path is given."""
    report = "\n".join(lines) + "\n"
    print(report)
    if path:
        path.write_text(report)
