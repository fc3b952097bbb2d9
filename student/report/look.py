"""What a run's own vectors of held-out texts show. It needs the cache and the stage's model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from student.encoding import FloatArray, encode
from student.evaluation.asymmetric import ALL_TEACHERS
from student.model import POOLED, create, load
from student.report.neighbours import density, samples
from student.report.records import Density, Look, Run
from student.spec import INIT, StudentSpec
from student.stages import FULL_HEAD
from teacher_cache.reader import CacheReader

Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a phase of work: (what, how many texts) → a context told each advance."""


def look(run: Run, reader: CacheReader, count: int, phase: Phase, *, device: str = "cpu") -> Look:
    """Encode up to `count` held-out texts and compare with their teachers' vectors.

    The last finished stage is looked at, by FC1 (or the first head that was trained), and beside it
    the untrained student, where its model still lies where it was.

    Raises:
        StudentError: the stage's model is not whole.
        CacheError: a shard is damaged.
    """
    record = run.last.record
    rows = reader.held_out_rows
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    chosen = [rows[place] for place in places.tolist()]
    texts = reader.texts(chosen)
    trained = record["trained_heads"]
    head = FULL_HEAD if FULL_HEAD in trained else trained[0]
    start = Path(str(record.get("init_path")))
    begins = start.is_dir()
    with phase(f"encoding held-out texts: {run.name}", len(texts) * (1 + begins)) as advance:
        student = load(run.last.model).to(device)
        own = encode(student, texts, (head,), advance=advance)[head]
        before = None
        if begins:
            untrained = create(
                StudentSpec.model_validate(record["student"]),
                start,
                student.head_widths[FULL_HEAD],
                record["seed"],
            ).to(device)
            before = encode(untrained, texts, (), advance=advance)[POOLED]
    teachers = record["teachers"]
    theirs = reader.vectors(chosen, teachers).astype(np.float32)
    return Look(
        run=run.name,
        rows=len(chosen),
        vector=head,
        densities=_densities(reader, teachers, chosen, theirs, own, head, before),
        samples=samples(theirs, own, texts, chosen),
    )


def _densities(
    reader: CacheReader,
    teachers: list[str],
    rows: list[int],
    theirs: FloatArray,
    own: FloatArray,
    head: str,
    before: FloatArray | None,
) -> list[Density]:
    together = ALL_TEACHERS if len(teachers) > 1 else teachers[0]
    found = [density(together, head, theirs, own)]
    if before is not None:
        found.insert(0, density(together, INIT, theirs, before))
    offset = 0
    for block in reader.blocks(teachers) if len(teachers) > 1 else ():
        # FC1 stands against one teacher with the slice that is to be that teacher's vector.
        part = own[:, offset : offset + block.width] if head == FULL_HEAD else own
        vectors = reader.vectors(rows, [block.teacher]).astype(np.float32)
        found.append(density(block.teacher, head, vectors, part))
        offset += block.width
    return found
