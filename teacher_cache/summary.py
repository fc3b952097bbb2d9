"""What a cache holds, as plain data for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.survey import NEIGHBOURS, Survey

_QUANTILES = {"min": 0.0, "low": 0.05, "median": 0.5, "high": 0.95, "max": 1.0}
_BINS = 24


def summarize(found: Survey) -> dict[str, Any]:
    """The facts of a cache and what a survey found in it, ready for JSON.

    Of tokens, characters, raw norms and similarities: `min`, `low` (5 %), `median`, `high` (95 %),
    `max`, `mean` and a histogram of equal bins between the ends. `longest` is the share of texts
    with the most tokens that the teacher saw of any: where it is not tiny, they were cut there.
    `sample` says how much was read.
    """
    manifest = found.reader.manifest
    return {
        "path": str(found.reader.path),
        "identity": manifest.identity,
        "format_version": manifest.format_version,
        "rows": manifest.rows,
        "held_out_rows": manifest.held_out_rows,
        "width": manifest.width,
        "dtype": manifest.dtype,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "row_bytes": dict(found.row_bytes),
        "disk": _disk(found.reader.path),
        "sample": {
            "shards": len(found.shards),
            "rows": len(found.characters),
            "pair_rows": found.pair_rows,
        },
        "blocks": [
            {
                **block.to_json(),
                "mean_tokens": float(found.tokens[:, i].mean()),
                "mean_norm": float(found.norms[:, i].mean(dtype=np.float64)),
                "tokens": _spread(found.tokens[:, i]),
                "norms": _spread(found.norms[:, i]),
                "longest": float((found.tokens[:, i] == found.tokens[:, i].max()).mean()),
            }
            for i, block in enumerate(manifest.blocks)
        ],
        "characters": _spread(found.characters),
        "similarities": {name: _spread(values) for name, values in found.similarities.items()},
        "agreement": [
            {
                "teachers": list(each.teachers),
                "order": each.order,
                f"neighbours@{NEIGHBOURS}": each.neighbours,
            }
            for each in found.agreements
        ],
        "pooled": None if manifest.pooled is None else manifest.pooled.to_json(),
        "corpus": manifest.corpus,
        "counts": manifest.counts,
    }


def _spread(values: NDArray[Any]) -> dict[str, Any] | None:
    """None of no values: a cache of one row has no pairs."""
    if not len(values):
        return None
    values = values.astype(np.float64)  # float32 has no 24 numbers between norms that are all one
    quantiles = np.quantile(values, list(_QUANTILES.values()))
    low, high = float(quantiles[0]), float(quantiles[-1])
    counts, edges = np.histogram(values, _BINS, (low, high) if low < high else None)
    return {
        **{name: float(value) for name, value in zip(_QUANTILES, quantiles, strict=True)},
        "mean": float(values.mean()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _disk(cache: Path) -> dict[str, int]:
    """Bytes in each folder of a cache, and in its files beside them."""
    sizes: dict[str, int] = {}
    for path in cache.rglob("*"):
        if path.is_file():
            parts = path.relative_to(cache).parts
            part = f"{parts[0]}/" if len(parts) > 1 else "*.json"
            sizes[part] = sizes.get(part, 0) + path.stat().st_size
    return dict(sorted(sizes.items()))
