"""Folders and files of a run that appear whole, or not at all, whenever the machine stops."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from student.spec import StudentError


def refuse_full(out: Path) -> None:
    """Say that there is no room for a folder where something is.

    Raises:
        StudentError: `out` exists and is not an empty folder, or it is the working folder, which
            cannot be replaced under whoever stands in it.
    """
    if out.resolve() == Path.cwd():
        raise StudentError(f"{out} is the working folder; give a folder in it to write to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudentError(f"{out} is not an empty folder; give another one to write to")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A path beside `out`, to write a folder to, which takes its place when all went well.

    Where anything fails, `out` is as it was; a link stays one, to what is written. Its files get
    the usual permissions: safetensors writes for the owner alone, and what is exported is to be
    handed on.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch, "folder")
        yield folder
        usual = Path(scratch, "usual")
        usual.touch()
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(usual.stat().st_mode)
        replace_folder(folder, out)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A path beside `out`, to write a file to, which takes its place when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.tmp")
    try:
        yield aside
        sync(aside)
        aside.replace(out)
        sync(out.parent)
    finally:
        aside.unlink(missing_ok=True)


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
