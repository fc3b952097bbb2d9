"""Where to cut texts, sorted by length, so that padding each part for itself adds least to compute.

Lengths have a long tail: of definitions, sentences and paragraphs in one batch, a fifth of the
texts has half of the tokens. Parts of equal numbers pad the last of them by as much again.

Shape suffixes: M marks between which a cut may lie, as starts S and ends E of a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MARKS = 256
"""Places looked at: all of a batch's up to so many texts, of a larger one evenly spread ones."""


def cheapest_parts(lengths: Sequence[int], parts: int) -> list[slice]:
    """Cut ascending lengths into exactly so many runs, with the fewest tokens once padded.

    One text a part where there are fewer texts than parts. The number of parts never depends on
    the lengths: processes that share a model's layers must call them equally often.
    """
    count = len(lengths)
    parts = min(parts, count)
    if parts <= 1:
        return [slice(0, count)] if count else []
    marks = max(parts, min(count, MARKS))
    ends_M = np.arange(1, marks + 1) * count // marks
    starts_M = np.concatenate([[0], ends_M[:-1]])
    padded_SE = _padded_tokens(starts_M, ends_M, np.asarray(lengths)[ends_M - 1])
    least_E, first_PE = padded_SE[0], []
    for _ in range(parts - 1):
        # The last part begins at mark s, what comes before ends there.
        before_S = np.concatenate([[np.inf], least_E[:-1]])
        total_SE = before_S[:, None] + padded_SE
        first_PE.append(total_SE.argmin(axis=0))
        least_E = total_SE.min(axis=0)
    found, last = [], marks - 1
    for first_E in reversed(first_PE):
        first = int(first_E[last])
        found.append(slice(int(starts_M[first]), int(ends_M[last])))
        last = first - 1
    found.append(slice(0, int(ends_M[last])))
    return found[::-1]


def _padded_tokens(
    starts_M: NDArray[np.int64], ends_M: NDArray[np.int64], longest_M: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tokens of the part from each start to each end, padded; infinite where it would be empty."""
    texts_SE = ends_M[None, :] - starts_M[:, None]
    padded_SE: NDArray[np.float64] = np.where(texts_SE > 0, texts_SE * longest_M[None, :], np.inf)
    return padded_SE
