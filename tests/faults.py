"""A disk that fails at the n-th thing that is done to a folder; another process that interferes.

The calls of `os` by which a folder changes are replaced for a while; so the real code writes real
files, and whatever else in the program changes the folder by these calls is seen too. An audit hook
of the interpreter tells of changes that came by other ways (`escaped`): no step may be overlooked.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

_CHANGING_EVENTS = {
    f"os.{name}"
    for name in (
        "chmod",
        "link",
        "mkdir",
        "mkfifo",
        "mknod",
        "remove",
        "rename",
        "rmdir",
        "symlink",
    )
} | {"os.truncate"}
_CHANGES = ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir")


class Step(NamedTuple):
    """One thing done to the folder: `name` is that of the call, `other` what a file is called then,
    `file` tells files apart whatever they are called."""

    name: str
    path: str
    other: str = ""
    data: bytes = b""
    file: int = 0


NEEDS_ROOM = {"create", "write", "mkdir", "link"}
CHANGES = {*NEEDS_ROOM, "rename", "unlink", "rmdir"}
"""The steps that fail where the disk is full, or read-only; the others are "open" and "fsync"."""

Fault = Callable[["Disk", Step], None]
"""Told of a step before it is done; it may raise instead."""


def no_fault(_disk: "Disk", _step: Step) -> None:
    """Every step succeeds."""


@dataclass
class Disk:
    """The steps done below `root`, and those that were not seen."""

    root: Path
    fault: Fault = no_fault
    steps: list[Step] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.real = {
            name: getattr(os, name) for name in (*_CHANGES, "open", "write", "fsync", "close")
        }
        self.handles: dict[int, tuple[str, int]] = {}
        self.files = 0
        self.mine = threading.local()
        self.active = False
        self.stopped = False

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        """Everything that happens inside is done by this disk."""
        _WATCHING.append(self)
        self.active = True
        for name in _CHANGES:
            setattr(os, name, self._changing(name))
        os.open, os.write, os.fsync, os.close = self._open, self._write, self._fsync, self._close  # type: ignore[assignment]
        try:
            yield self
        finally:
            self.active = False
            for name, function in self.real.items():
                setattr(os, name, function)
            _WATCHING.remove(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside, in this thread, is done by the real disk alone, and not counted."""
        before = getattr(self.mine, "passing", False)
        self.mine.passing = True
        try:
            yield
        finally:
            self.mine.passing = before

    def _passing(self) -> bool:
        return self.stopped or getattr(self.mine, "passing", False)

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        with self.paused():
            self.fault(self, step)

    def _place(self, path: Any, dir_fd: int | None = None) -> str:
        """The path, if it is the root, below it, or the folder which that has its name in."""
        name = os.fspath(path)
        if dir_fd is not None and dir_fd in self.handles:
            name = os.path.join(self.handles[dir_fd][0], name)  # noqa: PTH118
        known = name in (str(self.root), str(self.root.parent)) or name.startswith(f"{self.root}/")
        return name if known else ""

    def _changing(self, name: str) -> Callable[..., Any]:
        def change(path: Any, *others: Any, dir_fd: int | None = None, **options: Any) -> Any:
            place = self._place(path, dir_fd)
            fd = {} if dir_fd is None else {"dir_fd": dir_fd}
            if place and not self._passing():
                other = self._place(others[0]) if name in ("rename", "replace", "link") else ""
                kind = {"remove": "unlink", "replace": "rename"}.get(name, name)
                self._step(Step(kind, place, other))
                with self.paused():
                    return self.real[name](path, *others, **fd, **options)
            return self.real[name](path, *others, **fd, **options)

        return change

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd) if not isinstance(path, int) else ""
        counted = place and not self._passing()
        if counted and flags & os.O_CREAT:
            self.files += 1
            self._step(Step("create", place, file=self.files))
        elif counted and os.path.isdir(place):  # noqa: PTH112
            self._step(Step("open", place))
        with self.paused():
            handle: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
        if counted:
            self.handles[handle] = (place, self.files if flags & os.O_CREAT else 0)
        return handle

    def _write(self, handle: int, data: Any) -> int:
        if handle in self.handles and not self._passing():
            place, file = self.handles[handle]
            self._step(Step("write", place, data=bytes(data), file=file))
        written: int = self.real["write"](handle, data)
        return written

    def _fsync(self, handle: int) -> None:
        if handle in self.handles and not self._passing():
            place, file = self.handles[handle]
            self._step(Step("fsync", place, file=file))
        self.real["fsync"](handle)

    def _close(self, handle: int) -> None:
        self.handles.pop(handle, None)
        self.real["close"](handle)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note a change that no replaced call made."""
        if not self.active or self._passing():
            return
        changes = event in _CHANGING_EVENTS
        if event == "open":
            flags = arguments[2] or 0
            changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        names = [name for name in arguments[:2] if isinstance(name, str | bytes | os.PathLike)]
        if changes and any(self._place(os.fsdecode(name)) for name in names):
            self.escaped.append(f"{event} {arguments}")


_WATCHING: list[Disk] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHING and (event == "open" or event.startswith("os.")):
        for disk in _WATCHING:
            disk.see(event, arguments)


sys.addaudithook(_audit)


def failing_once(moment: int, number: int) -> Fault:
    """The step of that number, counted from 0, fails; the ones after it succeed."""

    def fault(disk: Disk, step: Step) -> None:
        if len(disk.steps) - 1 == moment:
            raise OSError(number, os.strerror(number), step.path)

    return fault


def full_from(moment: int) -> Fault:
    """From that step on nothing more fits; what is there can be renamed and removed."""

    def fault(disk: Disk, step: Step) -> None:
        if len(disk.steps) > moment and step.name in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step.path)

    return fault


def read_only_from(moment: int) -> Fault:
    """From that step on nothing can be changed."""

    def fault(disk: Disk, step: Step) -> None:
        if len(disk.steps) > moment and step.name in CHANGES:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), step.path)

    return fault


def without_links(disk: Disk, step: Step) -> None:
    """A file system that knows no hard links."""
    if step.name == "link":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), step.path)


def meanwhile(moment: int, work: Callable[[], object]) -> Fault:
    """The process is stopped before that step, and goes on when `work` is done by another."""

    def fault(disk: Disk, _step: Step) -> None:
        if len(disk.steps) - 1 == moment:
            disk.stopped = True
            try:
                work()
            finally:
                disk.stopped = False

    return fault
