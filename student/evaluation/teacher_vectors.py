"""The teachers' vectors of the tasks' texts, out of caches that were built over them. No torch.

`student` never loads a teacher. A row's id is the digest of its text, so any finished cache that
holds a text has its vector; `task_texts` writes the texts down for such a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from student.evaluation.asymmetric import ALL_TEACHERS, spaces
from student.evaluation.task_spec import Embed, Task, TaskError
from student.evaluation.tasks import source_of
from student.stages import FULL_HEAD
from teacher_cache.format import Block, checksum
from teacher_cache.reader import CacheReader

if TYPE_CHECKING:
    from student.encoding import FloatArray

_Place = tuple[int, int]
"""The number of a cache, and a row of it."""


class TeacherVectors:
    """The vectors of the tasks' texts under the run's teachers, as far as every cache holds them.

    `blocks` are the run's. `names` are those whose vectors there are, "all teachers" first. A text
    that has several rows is taken from one with its role in this task, if there is one: its prompt
    is the right one.

    Raises:
        CacheError: a cache cannot be opened.
        TaskError: a cache holds none of the teachers, or another model under a teacher's name, or a
            text is in no cache.
    """

    def __init__(
        self, paths: Sequence[Path], blocks: Sequence[Block], tasks: Sequence[Task]
    ) -> None:
        self._readers = [CacheReader(path) for path in paths]
        for reader in self._readers:
            _check_models(reader, blocks)
        held = [set(reader.teachers) for reader in self._readers]
        self._teachers = [b.teacher for b in blocks if all(b.teacher in names for names in held)]
        where = ", ".join(map(str, paths))
        if not self._teachers:
            raise TaskError(
                f"{where}: expected vectors of {' or '.join(b.teacher for b in blocks)} in each, "
                "found other teachers'"
            )
        whole = len(self._teachers) == len(blocks)
        self._columns = {
            name: columns
            for name, columns in spaces(blocks).items()
            if name in self._teachers or (name == ALL_TEACHERS and whole)
        }
        self._places = self._find(tasks, where)

    @property
    def names(self) -> tuple[str, ...]:
        """Whose vectors there are."""
        return tuple(self._columns)

    def of(self, task: Task) -> Embed:
        """The teachers' own vectors of a task's texts, by teacher."""

        def embed(texts: Sequence[str], role: str) -> dict[str, FloatArray]:
            source = source_of(task, role)
            places = [self._places[source, _id(text)] for text in texts]
            return {name: self._vectors(name, places) for name in self._columns}

        return embed

    def spoken(self, student: Embed) -> Embed:
        """What a student says in the teachers' own spaces: FC1's columns, by teacher."""

        def embed(texts: Sequence[str], role: str) -> dict[str, FloatArray]:
            whole = student(texts, role)[FULL_HEAD]
            return {name: whole[:, columns] for name, columns in self._columns.items()}

        return embed

    def prompt(self, name: str, source: str) -> str:
        """What stood before the texts of a source; '' for several teachers of different prompts."""
        teachers = self._teachers if name == ALL_TEACHERS else [name]
        prompts = {
            block.prompts.get(source, block.prompts.get("default", ""))
            for reader in self._readers
            for block in reader.blocks(teachers)
        }
        return prompts.pop() if len(prompts) == 1 else ""

    def _vectors(self, name: str, places: Sequence[_Place]) -> FloatArray:
        teachers = self._teachers if name == ALL_TEACHERS else [name]
        columns = self._columns[name]
        found = np.empty((len(places), columns.stop - columns.start), np.float32)
        of_cache, rows = np.array(places).T
        for number, reader in enumerate(self._readers):
            chosen = np.flatnonzero(of_cache == number)
            found[chosen] = reader.vectors(rows[chosen], teachers)
        return found

    def _find(self, tasks: Sequence[Task], where: str) -> dict[tuple[str, str], _Place]:
        """The place of each text of the tasks, by its source and id."""
        wanted = {
            source_of(task, role): {_id(text): text for text in texts}
            for task in tasks
            for role, texts in task.texts().items()
        }
        sources_of: dict[str, list[str]] = {}
        for source, texts in wanted.items():
            for id_ in texts:
                sources_of.setdefault(id_, []).append(source)
        places: dict[tuple[str, str], _Place] = {}
        for place, id_, found_in in self._rows():
            for source in sources_of.get(id_, ()):
                if source == found_in or (source, id_) not in places:
                    places[source, id_] = place
        for source, texts in wanted.items():
            missing = [text for id_, text in texts.items() if (source, id_) not in places]
            if missing:
                raise TaskError(
                    f"{where}: no vector of {len(missing):,} of the {len(texts):,} texts {source}, "
                    f"for instance {missing[0]!r:.80}; build a cache over what "
                    "jasper-student evaluate … --write-texts FOLDER writes"
                )
        return places

    def _rows(self) -> Iterator[tuple[_Place, str, str]]:
        for number, reader in enumerate(self._readers):
            for shard in range(len(reader.manifest.shards)):
                batch = reader.shard(shard, ["id", "source"])
                first = shard * reader.manifest.rows_per_shard
                columns = (batch.column(name).to_pylist() for name in ("id", "source"))
                for row, (id_, source) in enumerate(zip(*columns, strict=True), first):
                    yield (number, row), id_.hex(), source


def _id(text: str) -> str:
    return checksum(text.encode())


def _check_models(reader: CacheReader, blocks: Sequence[Block]) -> None:
    """The teachers of a cache that have a name of the run's must be the run's."""
    theirs = {block.teacher: block for block in reader.blocks()}
    for block in blocks:
        other = theirs.get(block.teacher, block)
        if (other.fingerprint, other.width) != (block.fingerprint, block.width):
            raise TaskError(
                f"{reader.path}: its teacher {block.teacher!r} ({other.fingerprint}, "
                f"{other.width:,} wide) is not the one the student learned from "
                f"({block.fingerprint}, {block.width:,} wide); build the cache from the recipe "
                "that --write-texts writes"
            )
