"""The layer under every write: a file appears whole, checksummed and durable, or not at all."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

_SERIAL = count()
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-\d+\.tmp$")


@dataclass(frozen=True, slots=True)
class Written:
    """What a committed file weighs: its bytes and the XXH3-128 of its contents, in hexadecimal."""

    bytes: int
    checksum: str


class _Hashing(RawIOBase):
    """A write-only stream that digests what passes through."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.bytes = 0
        self.digest = xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.stream.write(data)
        self.bytes += size
        return size


def commit_file(path: Path, write: Callable[[BinaryIO], None]) -> Written:
    """Write a file so that a crash at any moment leaves the old one or the new one.

    `write` fills a temporary file beside `path`; it is synced, renamed over `path`, and the
    folder is synced. On any failure the temporary file is removed and `path` is untouched.
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
        try:
            os.link(temporary, path)
            temporary.unlink()
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            temporary.replace(path)
    _sync_folder(path.parent)
    return True


@contextmanager
def _aside(
    folder: Path, stem: str, write: Callable[[BinaryIO], None]
) -> Iterator[tuple[Path, Written]]:
    """A temporary file, written and synced; whatever is left of it in the end is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{stem}.{_host()}-{os.getpid()}-{next(_SERIAL)}.tmp"
    try:
        with temporary.open("wb") as stream:
            hashing = _Hashing(stream)
            write(hashing)  # type: ignore[arg-type]  # a raw stream has all that writers ask for
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary, Written(hashing.bytes, hashing.digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def remove_leftovers(folder: Path) -> None:
    """Remove, in a folder and all below it, what dead builders of this host left behind.

    A file that bears this process's own number is a dead builder's too: in a container that starts
    again, every builder has the same number. So call it while this process writes nothing there.
    """
    for path in folder.rglob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match and match["host"] == _host() and not _of_another_alive(int(match["pid"])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())


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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
