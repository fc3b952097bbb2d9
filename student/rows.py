"""Which rows of a cache a stage trains on: all, or those whose texts are short. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from student.stages import StageError, StageSpec
from teacher_cache.reader import CacheReader

Rows = NDArray[np.int64]


def rows_to_train_on(reader: CacheReader, spec: StageSpec) -> Rows | None:
    """The rows, ascending; None for all of them.

    Of a cache of 8 million texts the lengths that are looked at are 32 MB a teacher.

    Raises:
        StageError: they are fewer than one batch.
        CacheError: a shard is damaged.
    """
    if spec.longest is None:
        return None
    count = len(reader.train_rows)
    # Texts as the teacher that has cut them into most tokens saw them.
    tokens = np.concatenate(
        [
            reader.shard(number, ["tokens"])["tokens"].flatten().to_numpy().reshape(shard.rows, -1)
            for number, shard in enumerate(reader.manifest.shards)
        ]
    ).max(axis=1)
    rows = np.flatnonzero(tokens[:count] <= spec.longest)
    if len(rows) < spec.batch_size:
        raise StageError(
            f"a batch of {spec.batch_size} texts, but only {len(rows)} of at most "
            f"{spec.longest} tokens: longest can be up to {tokens[:count].max()} here"
        )
    return rows
