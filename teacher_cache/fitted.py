"""Fitted teachers as they lie in a cache: files of its own, which may be a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from teacher_cache import models
from teacher_cache.files import commit_bytes, commit_folder
from teacher_cache.format import Block, CacheError, regular_file, teacher_path
from teacher_cache.opening import check_folder


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of a fitted teacher's folder; None where there is none.

    Raises:
        CacheError: a link, a pipe or a folder lies where a file of the cache is expected.
        OSError: it cannot be read.
    """
    files = _files(folder)
    return None if files is None else models.fingerprint(folder, files)


def copy_teacher(folder: Path, block: Block, cache: Path) -> None:
    """Copy a fitted teacher's folder into another cache, whole or not at all.

    Raises:
        CacheError: it is not the block's teacher, or something else lies there already.
    """

    def fill(aside: Path) -> None:
        for path in _files(folder) or ():
            commit_bytes(aside / path.name, path.read_bytes())
        _check(aside, block, f"{folder} is damaged; mend it with: jasper-cache repair "
                             f"{folder.parent.parent}")  # fmt: skip

    copied = teacher_path(cache, block.teacher)
    if not copied.is_dir():
        commit_folder(copied, fill)
    _check(copied, block, f"{copied} is another: remove it and run the same command again")


def _files(folder: Path) -> Sequence[Path] | None:
    check_folder(folder.parent)
    check_folder(folder)
    if not folder.exists():
        return None
    files = sorted(folder.iterdir())
    for path in files:
        regular_file(path)
    return files


def _check(folder: Path, block: Block, advice: str) -> None:
    try:
        found = fingerprint_of(folder)
    except OSError as error:
        raise CacheError(f"teacher {block.teacher!r}: {advice} ({error})") from None
    if found != block.fingerprint:
        raise CacheError(
            f"teacher {block.teacher!r}: its fingerprint is {found}, its block says "
            f"{block.fingerprint}: {advice}"
        )
