"""A trained student on disk: where it lies, and which vectors it can give. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from student.run import RUN_FILE, last_stage, read_record
from student.spec import POOLED, SPEC_FILE, StudentError
from student.stages import head_of, width_of


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a student: all their widths, and which of them, or of their first columns
    (`fc1[:512]`), were trained."""

    widths: Mapping[str, int]
    trained: tuple[str, ...]

    @classmethod
    def of(cls, widths: Mapping[str, int], trained: Iterable[str]) -> Heads:
        """Those that a stage's record says were trained, in the order of the student's own."""
        entries = [entry for entry in trained if head_of(entry)[0] in widths]
        return cls(widths, tuple(sorted(entries, key=lambda e: [*widths].index(head_of(e)[0]))))

    def choose(self, asked: str | int) -> str:
        """The vector that is asked for, by its name.

        `asked` is a head (`fc2`), the only head of a width (`1024`), the first columns of one
        (`fc1[:512]`), or `pooled`: the body alone.

        Raises:
            StudentError: no such head, an untrained one, or none or several of that width.
            StageError: it is spelled otherwise, or more columns than the head has.
        """
        asked = str(asked)
        if asked == POOLED:
            return asked
        if asked.isdecimal():
            return self._of_width(int(asked))
        head, columns = head_of(asked)
        if not any(_lies_in(head, columns, entry) for entry in self.trained):
            what = "has not trained" if head in self.widths else "has no head"
            can = ", ".join((*self.trained, POOLED))
            raise StudentError(f"the run {what} {asked!r}; it can give {can}")
        width_of(asked, self.widths)
        return asked

    def _of_width(self, width: int) -> str:
        widths = {entry: width_of(entry, self.widths) for entry in self.trained}
        found = [entry for entry in self.trained if widths[entry] == width]
        if len(found) == 1:
            return found[0]
        heads = ", ".join(f"{entry} ({widths[entry]} wide)" for entry in self.trained)
        what = f"{len(found)} trained heads are" if found else "no trained head is"
        raise StudentError(
            f"{what} {width} wide: {heads}; give one by its name, or the first columns of one, "
            f"such as fc1[:{width}]"
        )


def _lies_in(head: str, columns: int | None, trained: str) -> bool:
    """Whether first columns of a head, or all of it (None), are among those that were trained."""
    name, most = head_of(trained)
    return name == head and (most is None or (columns is not None and columns <= most))


@dataclass(frozen=True, slots=True)
class Trained:
    """A saved student: its `folder`, its `heads`, and the `run.json` of its stage if there is one.

    Without a record, a folder that was moved away from its run, all heads count as trained.
    `released` tells that the folder has the layout of the released Jasper checkpoint.
    """

    folder: Path
    heads: Heads
    record: Mapping[str, Any] | None
    released: bool = False


def find(path: Path) -> Trained:
    """What lies at `path`: a run (its last stage), one stage of it, a stage's `model` folder, or a
    folder in the layout of the released Jasper checkpoint.

    Raises:
        StudentError: no trained student.
    """
    if not path.exists():
        raise StudentError(f"there is no {path}: expected a run, a stage of it, or its model")
    if (path / "config.json").is_file():
        return _released(path)
    folder = path if (path / SPEC_FILE).is_file() else last_stage(path) / "model"
    spec = folder / SPEC_FILE
    try:
        widths: dict[str, int] = json.loads(spec.read_text(encoding="utf-8"))["head_widths"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudentError(
            f"{folder} holds no student: {spec} cannot be read ({type(error).__name__})"
        ) from None
    stage = folder.resolve().parent
    record = read_record(stage) if (stage / RUN_FILE).is_file() else None
    heads = Heads.of(widths, widths if record is None else record["trained_heads"])
    return Trained(folder, heads, record)


def _released(folder: Path) -> Trained:
    from student.released import released_heads  # torch, which no other student here needs

    widths = released_heads(folder)
    return Trained(folder, Heads(widths, tuple(widths)), None, released=True)
