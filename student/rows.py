"""Which rows of a cache a stage trains on: all, or those whose texts are short. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from student.stages import StageError, StageSpec
from teacher_cache.reader import CacheReader

Rows = NDArray[np.int64]


def rows_to_train_on(reader: CacheReader, spec: StageSpec, teachers: Sequence[str]) -> Rows | None:
    """The rows, ascending; None for all of them.

    A text is as long as the one of `teachers` saw it that has cut it into most tokens. Of a cache
    of 8 million texts the lengths that are looked at are 32 MB a teacher.

    Raises:
        StageError: they are fewer than one batch.
        CacheError: a shard is damaged.
    """
    if spec.longest is None:
        return None
    count = len(reader.train_rows)
    blocks = reader.manifest.blocks
    columns = [place for place, block in enumerate(blocks) if block.teacher in teachers]
    tokens = np.concatenate(
        [
            reader.shard(number, ["tokens"])["tokens"].flatten().to_numpy().reshape(shard.rows, -1)
            for number, shard in enumerate(reader.manifest.shards)
        ]
    )
    lengths = tokens[:count, columns].max(axis=1)
    rows = np.flatnonzero(lengths <= spec.longest)
    if len(rows) < spec.batch_size:
        enough = np.sort(lengths)[spec.batch_size - 1]
        raise StageError(
            f"a batch of {spec.batch_size} texts, but only {len(rows)} of at most "
            f"{spec.longest} tokens: the least that gives a batch is longest = {enough}"
        )
    return rows
