"""A file appears whole, checksummed and durable, or not at all."""

import errno
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytest
import xxhash

from teacher_cache import files
from teacher_cache.files import (
    ABANDONED_SECONDS,
    commit_bytes,
    commit_file,
    commit_first,
    commit_folder,
    remove_if,
    remove_leftovers,
)
from teacher_cache.format import CacheError


@contextmanager
def traced(*names: str) -> Iterator[list[str]]:
    """The calls of these built-in functions, in the order in which they are made."""
    calls: list[str] = []

    def see(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in names:
            calls.append(function.__name__)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_commit_reports_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    data = os.urandom(100_000)

    def write(stream: BinaryIO) -> None:
        stream.write(data[:7])
        stream.write(memoryview(data)[7:])

    written = commit_file(path, write)
    assert path.read_bytes() == data
    assert (written.bytes, written.checksum) == (len(data), xxhash.xxh3_128_hexdigest(data))
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_size_counts_bytes_and_not_items(tmp_path: Path) -> None:
    floats = memoryview(os.urandom(64)).cast("d")
    assert commit_file(tmp_path / "file", lambda stream: void(stream.write(floats))).bytes == 64
    assert (tmp_path / "file").read_bytes() == floats.tobytes()


def void(_: object) -> None:
    """Nothing, as a value."""


def test_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    commit_bytes(path, b"old")

    def write(stream: BinaryIO) -> None:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"

    commit_file(path, write)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), CacheError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=repr,
)
def test_failed_write_leaves_the_old_file_and_no_other(
    error: BaseException, told: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    commit_bytes(path, b"old")

    def write(stream: BinaryIO) -> None:
        stream.write(b"half of the new")
        raise error

    with pytest.raises(told) as raised:
        commit_file(path, write)
    assert told is KeyboardInterrupt or f"{path} cannot be written: No space" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_contents_are_synced_before_the_name_and_the_name_before_the_return(
    tmp_path: Path,
) -> None:
    with traced("fsync", "replace") as calls:
        commit_bytes(tmp_path / "file", b"data")
    assert calls == ["fsync", "replace", "fsync"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    kept = [".mine.tmp", "00000.arrow", ".00000.arrow.another_host-1-0.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"kept")
    with half_way(tmp_path) as (builder, left):
        builder.kill()
        builder.wait()
        assert left.read_bytes() == b"half"
        with half_way(tmp_path) as (_, held):
            remove_leftovers(tmp_path)
            assert {path.name for path in tmp_path.iterdir()} == {*kept, held.name}


def test_name_of_the_host_does_not_tell_that_a_builder_is_dead(tmp_path: Path) -> None:
    """In another container of it, or on another one of that name, every number is another's."""
    host = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())
    of_others = [tmp_path / f".00000.arrow.{place}-4194305-0.tmp" for place in (host, "another")]
    for path in of_others:
        path.write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in of_others)
    old = time.time() - ABANDONED_SECONDS - 60
    os.utime(of_others[0], (old, old))
    remove_leftovers(tmp_path)
    assert [path.exists() for path in of_others] == [False, True]


def test_file_that_another_is_writing_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should both come to one name for it after all."""
    with half_way(tmp_path) as (builder, left):
        builder.kill()
    number, pid = (int(part) for part in left.stem.split("-")[:0:-1])
    monkeypatch.setattr(files, "_SERIAL", count(number))
    monkeypatch.setattr(os, "getpid", lambda: pid)
    with pytest.raises(CacheError, match="cannot be written: File exists"):
        commit_bytes(tmp_path / "file", b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"half"]


def test_first_of_several_files_stays(tmp_path: Path) -> None:
    assert commit_first(tmp_path / "file", b"first")
    assert not commit_first(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_folder_appears_whole_and_the_first_of_several_stays(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"

    def fill(aside: Path, data: bytes = b"first") -> None:
        commit_bytes(aside / "one", data)
        assert not folder.exists() or data == b"second"
        commit_bytes(aside / "other", data)

    commit_folder(folder, fill)
    commit_folder(folder, lambda aside: fill(aside, b"second"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "one": b"first",
        "other": b"first",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_folder_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fill(aside: Path) -> None:
        commit_bytes(aside / "one", b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commit_folder(tmp_path / "folder", fill)
    assert not list(tmp_path.iterdir())


def test_unwanted_file_is_removed_and_what_took_its_place_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data, kept in ((b"unwanted", []), (b"wanted", ["file"])):
        commit_bytes(path, data)
        remove_if(path, lambda aside: aside.read_bytes() == b"unwanted")
        assert [file.name for file in tmp_path.iterdir()] == kept
    assert path.read_bytes() == b"wanted"
    remove_if(tmp_path / "gone", lambda _: True)


_HALF_WAY = """
import sys
from pathlib import Path
from teacher_cache.files import commit_file

def write(stream):
    stream.write(b"half")
    print("half", flush=True)
    sys.stdin.read()

commit_file(Path(sys.argv[1]) / "file", write)
"""


@contextmanager
def half_way(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process in the middle of a commit, and its temporary file."""
    before = set(folder.iterdir())
    command = [sys.executable, "-c", _HALF_WAY, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        (temporary,) = set(folder.iterdir()) - before
        yield process, temporary
