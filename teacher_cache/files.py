"""The layer under every write: a file appears whole, checksummed and durable, or not at all.

Nothing of a cache is written, named or removed but by the functions here, and these change the disk
by calls of `os` alone: tests put a disk that fails, tears and forgets beneath them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import RawIOBase
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import xxhash

from teacher_cache.format import CacheError

_SERIAL = count(secrets.randbits(48))
"""Begins anywhere, so that two processes of one number do not come to one name."""
_WORTH_A_THREAD = 1 << 22
"""Bytes: to digest so many takes four times as long as to start a thread."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_TEMPORARY = re.compile(r"\..+\.(?P<place>[^.]+)-(?P<pid>\d+)-\d+\.tmp")

ABANDONED_SECONDS = 7 * 86_400.0
"""A temporary file that nobody wrote to for so long is a dead builder's, wherever that ran."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a committed file weighs: its bytes and the XXH3-128 of its contents, in hexadecimal."""

    bytes: int
    checksum: str


class _Hashing(RawIOBase):
    """A write-only stream over an open file that digests what passes through."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.bytes = 0
        self.digest = xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        # Both outside of the interpreter's lock: much is digested while it is written.
        digesting = Thread(target=self.digest.update, args=(data,))
        (digesting.start if size >= _WORTH_A_THREAD else digesting.run)()
        try:
            while left:
                left = left[os.write(self.handle, left) :]
        finally:
            if size >= _WORTH_A_THREAD:
                digesting.join()
        self.bytes += size
        return size


def commit_file(path: Path, write: Callable[[BinaryIO], None]) -> Written:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    `write` fills a temporary file beside `path`; it is synced, renamed over `path`, and the
    folder is synced. On any failure the temporary file is removed and `path` is untouched.

    Raises:
        CacheError: the disk is full, cannot be written, or fails.
    """
    return commit_named(path.parent, path.name, write, lambda _: path)


def commit_named(
    folder: Path, stem: str, write: Callable[[BinaryIO], None], name: Callable[[Written], Path]
) -> Written:
    """`commit_file` for a file in `folder` whose path follows from what was written.

    `stem` is what its temporary file is called by.
    """
    with _aside(folder, stem, write) as (temporary, written):
        temporary.replace(name(written))
        _sync_folder(folder)
    return written


def commit_bytes(path: Path, data: bytes) -> Written:
    """`commit_file` for what is already in memory."""
    return commit_file(path, lambda stream: _write_all(stream, data))


def commit_first(path: Path, data: bytes) -> bool:
    """`commit_bytes` unless there is such a file: of several writers the first wins, the rest are
    told False.

    Where the file system knows no hard links, the last wins.
    """
    with _aside(path.parent, path.name, lambda stream: _write_all(stream, data)) as (temporary, _):
        first = _name_first(temporary, path)
        _sync_folder(path.parent)
    return first


def commit_unless(
    settled: Callable[[], bool], path: Path, write: Callable[[BinaryIO], None]
) -> Written | None:
    """`commit_file`, but what is there by the time that all is `settled` stays: None then."""
    with _aside(path.parent, path.name, write) as (temporary, written):
        while not (late := settled()) and not _name_first(temporary, path):
            remove_if(path, lambda _: not settled())
        _sync_folder(path.parent)
    return None if late else written


def commit_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that appears whole, unless there is one of that name: the first stays.

    `fill` commits the files into a temporary folder, which is then renamed.
    """
    temporary = _temporary(folder.parent, folder.name)
    try:
        with _told(folder):
            _make_folder(temporary)
        fill(temporary)
        with _told(folder):
            try:
                temporary.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _sync_folder(folder.parent)
    finally:
        remove_folder(temporary)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with _told(path, "removed"):
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all it holds, or as much of it as can be removed."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_if(path: Path, unwanted: Callable[[Path], bool]) -> None:
    """Remove a file that is unwanted, and no other that takes its name meanwhile.

    It is judged under a temporary name, where nobody can replace it, and gets its own name back
    if it is wanted.
    """
    temporary = _temporary(path.parent, path.name)
    with _told(path, "removed"):
        with suppress(FileNotFoundError):
            path.rename(temporary)
            if not unwanted(temporary):
                _name_first(temporary, path)
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove, in a folder and all below it, what dead builders left behind.

    Where a builder's number means nothing here (it ran on another host, before the last start of
    this one, or in another container), time must tell: what is as old as that is nobody's.

    A file that bears this process's own number is a dead builder's too: in a container that starts
    again, every builder has the same number. So call it while this process writes nothing there.
    """
    for place, folders, files in os.walk(folder):  # which forgives what vanishes meanwhile
        for path in (Path(place, name) for name in (*folders, *files)):
            match = _TEMPORARY.fullmatch(path.name)
            if match and _is_dead(path, match["place"], int(match["pid"])):
                if path.is_dir():
                    remove_folder(path)
                else:
                    remove(path)


def settle(folder: Path) -> None:
    """Make durable what files a folder has, and by which names, whoever gave them."""
    with _told(folder):
        _sync_folder(folder)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a builder had not finished writing."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def temporary_file(folder: Path, stem: str) -> Iterator[Path]:
    """An empty file that tells others of this process, for as long as it lasts."""
    temporary = _temporary(folder, stem)
    with _told(temporary):
        _make_folder(folder)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def _aside(
    folder: Path, stem: str, write: Callable[[BinaryIO], None]
) -> Iterator[tuple[Path, Written]]:
    """A temporary file, written and synced; whatever is left of it in the end is removed."""
    temporary = _temporary(folder, stem)
    with _told(folder / stem):
        _make_folder(folder)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                hashing = _Hashing(handle)
                write(hashing)  # type: ignore[arg-type]  # a raw stream has all that writers ask for
                os.fsync(handle)
            finally:
                os.close(handle)
            yield temporary, Written(hashing.bytes, hashing.digest.hexdigest())
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _told(path: Path, what: str = "written") -> Iterator[None]:
    """A disk that is full, read-only or broken is an expected failure, told in one line."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{path} cannot be {what}: {error.strerror or error}; nothing that was committed is "
            "lost: the same command goes on from there as soon as the disk allows it"
        ) from error


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _name_first(temporary: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; it may then still have the temporary one."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary.replace(path)
    return True


def _temporary(folder: Path, stem: str) -> Path:
    return folder / f".{stem}.{_place()}-{os.getpid()}-{next(_SERIAL)}.tmp"


@cache
def _place() -> str:
    """Within what the numbers of processes can be compared.

    A host's name is not enough: nodes may all be called localhost, and containers that share their
    host's network share its name, while in each of them the builder is process 1.
    """
    facts = [socket.gethostname()]
    with suppress(OSError):  # there is no /proc on every system
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return xxhash.xxh3_64_hexdigest("\0".join(facts).encode())


def _is_dead(path: Path, place: str, pid: int) -> bool:
    if place == _place():
        return not _of_another_alive(pid)
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def _of_another_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_folder(folder: Path) -> None:
    """Make a folder, durably: a power cut would else take it, with all that was synced in it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
