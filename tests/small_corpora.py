"""Corpora in the layout that the yardstick of quality reads, of a few made sentences."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

_THINGS = ("a boat", "a letter", "a river", "the winter", "a garden", "music", "an old house")
_KINDS = ("green", "quiet", "distant", "heavy", "forgotten", "narrow", "bright", "careful")
_DOES = ("crosses", "recalls", "follows", "outlasts", "hides", "carries", "answers")

SYNSETS = [
    {
        "id": f"{number:08d}-n",
        "definition": f"something {kind} that {does} {thing}",
        # A third has no example, a third has two.
        "examples": [
            f"how {kind} it is, he said, when it {does} {thing}",
            f"what {does} {thing} may be {kind}",
        ][: number % 3],
    }
    for number, (thing, kind, does) in enumerate(product(_THINGS, _KINDS, _DOES))
]
SPLITS = [
    {
        "complex": f"The {kind} man {does} {thing}, which nobody saw.",
        "simple": [f"The {kind} man {does} {thing}.", f"Nobody saw how {kind} {thing} was {does}."],
    }
    for kind, does, thing in product(_KINDS, _DOES[:3], _THINGS[:2])
]
PARAGRAPHS = [
    f"They came by {kind} roads. {thing.capitalize()} was there before them. Nobody {does} it now."
    for kind, thing, does in product(_KINDS[:5], _THINGS[:3], _DOES[:2])
]


def write_corpora(
    folder: Path,
    *,
    synsets: Sequence[dict[str, Any]] = SYNSETS,
    paragraphs: Sequence[str] = PARAGRAPHS,
) -> Path:
    """Write all four corpora."""
    texts = [{"text": paragraph} for paragraph in paragraphs]
    _write(folder / "oewn" / "oewn.jsonl.gz", synsets)
    _write(folder / "standardebooks" / "paragraphs.jsonl.gz", texts[::2])
    _write(folder / "wikitext2" / "paragraphs.jsonl.gz", texts[1::2])
    _write(folder / "wiki-split" / "wiki-split-eval.jsonl.gz", SPLITS)
    return folder


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
