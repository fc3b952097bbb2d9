"""Folders and files of a run that appear whole, or not at all, whenever the machine stops."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_folder(aside: Path, target: Path) -> None:
    """Put a finished folder in its place, synced; what was there goes.

    A crash at any moment leaves `target` as it was, absent, or whole, never half of it.
    """
    for path in (*aside.rglob("*"), aside):
        sync(path)
    if target.exists():
        remove_folder(target)
    aside.rename(target)
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder that nobody may find half removed."""
    doomed = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def replace_text(path: Path, text: str) -> None:
    """Write a small text file, or leave the one that is there."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
