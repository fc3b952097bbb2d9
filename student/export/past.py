"""What a card tells of a student's past beside its record: earlier stages, texts, what was kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student.run import (
    EVALUATION_FILE,
    FRESH,
    RUN_FILE,
    keeps_text_side,
    read_record,
    stage_folder,
)
from teacher_cache.format import CacheError, Manifest
from teacher_cache.reader import CacheReader


@dataclass(frozen=True, slots=True)
class Past:
    """The records (`run.json`) of the stages, the first one first; the manifest of the cache and
    the stage's `evaluation.json`, None where they are not to be found."""

    stages: tuple[Mapping[str, Any], ...] = ()
    cache: Manifest | None = None
    evaluation: Mapping[str, Any] | None = None


def past_of(folder: Path) -> Past:
    """The past of the student of a stage, as far as its files are still where they were.

    Raises:
        StudentError: a `run.json` is broken.
    """
    record = read_record(folder)
    stages = _stages(folder)
    return Past(tuple(stages.values()), _cache(record), _evaluation(stages))


def _stages(folder: Path) -> dict[Path, Mapping[str, Any]]:
    """The stages up to this one, the first one first, by their folders."""
    found: dict[Path, Mapping[str, Any]] = {}
    place: Path | None = folder
    while place is not None and place not in found and (place / RUN_FILE).is_file():
        found[place] = read_record(place)
        place = _before(place, found[place])
    return dict(reversed(found.items()))


def _before(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The stage that a stage began from; None for the first, which began from the untrained."""
    start = record.get("init_from")
    if start is not None:
        return None if start == FRESH else Path(start)
    number = record["number"]
    return stage_folder(folder.parent, number - 1) if number > 1 else None


def _cache(record: Mapping[str, Any]) -> Manifest | None:
    try:
        manifest = CacheReader(record["cache_path"]).manifest
    except (CacheError, KeyError):
        return None
    return manifest if manifest.identity == record["cache"] else None


def _evaluation(stages: dict[Path, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """That of the last stage, or of the one before while a stage left the text side as it was."""
    for folder, record in reversed(stages.items()):
        try:
            found = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if isinstance(found, Mapping):
            return found
        if not keeps_text_side(record):
            return None
    return None
