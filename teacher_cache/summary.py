"""What a cache holds, as plain data, from its manifest and its small columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from teacher_cache.reader import CacheReader


def summarize(reader: CacheReader) -> dict[str, Any]:
    """The facts of a cache for people and programs; vectors are not read.

    `mean_tokens` is the mean number of tokens each teacher saw of a text, `mean_norm` the mean
    length of its raw vectors.
    """
    manifest = reader.manifest
    tokens = np.zeros(len(manifest.blocks))
    norms = np.zeros(len(manifest.blocks))
    for index in range(len(manifest.shards)):
        batch = reader.shard(index)
        for name, total in (("tokens", tokens), ("norms", norms)):
            values = batch.column(name).flatten().to_numpy()
            total += values.reshape(batch.num_rows, -1).sum(axis=0)
    return {
        "path": str(reader.path),
        "identity": manifest.identity,
        "format_version": manifest.format_version,
        "rows": manifest.rows,
        "held_out_rows": manifest.held_out_rows,
        "width": manifest.width,
        "dtype": manifest.dtype,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "blocks": [
            {
                **block.to_json(),
                "mean_tokens": float(tokens[i] / manifest.rows),
                "mean_norm": float(norms[i] / manifest.rows),
            }
            for i, block in enumerate(manifest.blocks)
        ],
        "corpus": manifest.corpus,
        "counts": manifest.counts,
    }
