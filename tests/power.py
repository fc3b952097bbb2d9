"""What a power cut may leave of a folder, from the steps that were done to it until then.

POSIX promises little: a file's data are there if they were synced since, a name (made, changed or
removed) is there if its folder was synced since. All else is the disk's choice: each such change of
a folder may be there or not, and data may be there, missing, or in part.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from faults import Step

Entry = int | str
"""What a name stands for: the number of a file, or the path under which a folder was made."""

Contents = dict[str, bytes | None]
"""What remains, by path; None for a folder."""


@dataclass
class _File:
    now: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    now: dict[str, Entry] = field(default_factory=dict)
    synced: dict[str, Entry] = field(default_factory=dict)
    pending: list[tuple[dict[str, Entry], tuple[str, ...]]] = field(default_factory=list)
    """Changes since it was synced: names that appear, names that go; a rename does both at once."""


@dataclass(frozen=True)
class Choice:
    """Which of the changes that were not synced the disk keeps, and what of unsynced data."""

    keeps: Callable[[], bool]
    data: Callable[[bytes], bytes]


EVERYTHING = Choice(lambda: True, lambda data: data)
"""As if the power had not been cut."""


def _torn(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes(len(data) - half)


def choices(seed: int) -> dict[str, Choice]:
    """The extremes, and one at random."""
    rng = random.Random(seed)
    variants: list[Callable[[bytes], bytes]] = [lambda data: data, lambda data: b"", _torn]
    return {
        "all, for only the process died": EVERYTHING,
        "nothing": Choice(lambda: False, lambda data: b""),
        "names without data": Choice(lambda: True, lambda data: b""),
        "names with torn data": Choice(lambda: True, _torn),
        "by chance": Choice(lambda: rng.random() < 0.5, lambda data: rng.choice(variants)(data)),
    }


def halved(steps: Iterable[Step]) -> Iterator[Step]:
    """The same steps, every write as two: a process may die within it, or the power fail."""
    for step in steps:
        if step.name == "write":
            middle = len(step.data) // 2
            yield step._replace(data=step.data[:middle])
            yield step._replace(data=step.data[middle:])
        else:
            yield step


class Model:
    """The folder `root`, step by step. It lies in a folder that was there, and synced, before."""

    def __init__(self, root: str) -> None:
        self.top, _, self.name = root.rpartition("/")
        self.files: dict[int, _File] = {}
        self.folders: dict[str, _Folder] = {self.top: _Folder()}
        # The path of a folder now → that under which it was made.
        self.made_as = {self.top: self.top}

    @classmethod
    def of(cls, root: Path, files: Mapping[str, bytes]) -> "Model":
        """A folder that holds these files, all synced."""
        model = cls(str(root))
        for number, (name, data) in enumerate(files.items(), 1):
            path = root / name
            for parent in reversed([place for place in path.parents if place.is_relative_to(root)]):
                if str(parent) not in model.folders:
                    model.do(Step("mkdir", str(parent)))
            for step in (
                Step("create", str(path), file=-number),
                Step("write", str(path), data=data, file=-number),
                Step("fsync", str(path), file=-number),
            ):
                model.do(step)
        for folder in list(model.folders):
            model.do(Step("fsync", folder))
        return model

    def do(self, step: Step) -> None:
        """Follow one step that succeeded."""
        if step.name == "create":
            self.files[step.file] = _File()
            self._change({step.path: step.file}, ())
        elif step.name == "write":
            self.files[step.file].now += step.data
        elif step.name == "fsync" and step.file:
            file = self.files[step.file]
            file.synced = file.now
        elif step.name == "fsync":
            folder = self.folders[self.made_as[step.path]]
            folder.synced, folder.pending = dict(folder.now), []
        elif step.name == "mkdir":
            self.folders[step.path] = _Folder()
            self.made_as[step.path] = step.path
            self._change({step.path: step.path}, ())
        elif step.name in ("rename", "link"):
            entry = self._entry(step.path)
            self._change({step.other: entry}, (step.path,) if step.name == "rename" else ())
            if step.name == "rename" and isinstance(entry, str):
                self.made_as[step.other] = self.made_as.pop(step.path)
        elif step.name in ("unlink", "rmdir"):
            self._change({}, (step.path,))

    def _entry(self, path: str) -> Entry:
        folder, _, name = path.rpartition("/")
        return self.folders[self.made_as[folder]].now[name]

    def _change(self, added: dict[str, Entry], removed: tuple[str, ...]) -> None:
        places = {path.rpartition("/")[0] for path in (*added, *removed)}
        (place,) = places  # nothing here is ever moved from one folder to another
        folder = self.folders[self.made_as[place]]
        change = (
            {path.rpartition("/")[2]: entry for path, entry in added.items()},
            tuple(path.rpartition("/")[2] for path in removed),
        )
        _apply(folder.now, change)
        folder.pending.append(change)

    def cut(self, choice: Choice) -> Contents:
        """What is there when the power comes back, by path below the folder `root` lies in."""
        found: Contents = {}
        self._collect(self.top, "", choice, found)
        return found

    def _collect(self, made_as: str, path: str, choice: Choice, found: Contents) -> None:
        folder = self.folders[made_as]
        entries = dict(folder.synced)
        for change in folder.pending:
            if choice.keeps():
                _apply(entries, change)
        for name, entry in sorted(entries.items()):
            place = f"{path}/{name}" if path else name
            if isinstance(entry, str):
                found[place] = None
                self._collect(entry, place, choice, found)
            else:
                file = self.files[entry]
                found[place] = file.now if file.now == file.synced else choice.data(file.now)


def _apply(entries: dict[str, Entry], change: tuple[dict[str, Entry], tuple[str, ...]]) -> None:
    added, removed = change
    for name in removed:
        entries.pop(name, None)
    entries.update(added)
