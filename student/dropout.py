"""Vector dropout: which columns of the pooled state a text loses in a step, without hidden state.

The draw is a pure function of (seed, step, place in the global batch): a resumed run, another
number of processes and a forward pass that is done again all lose the same columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STREAM = 0xD209
"""Keeps these draws apart from others that are made from the same seed and step."""


def kept_columns(
    seed: int, step: int, *, rows: int, width: int, share: float, process: int, processes: int
) -> Tensor:
    """Factors [rows / processes, width]: 0 with probability `share`, else 1 / (1 - share).

    `rows` is the global batch, of which each process has an equal run, in their order.
    """
    numbers = np.random.default_rng([_STREAM, seed, step]).random((rows, width), np.float32)
    own = rows // processes
    kept = numbers[process * own : (process + 1) * own] >= share
    return torch.from_numpy(kept.astype(np.float32) / np.float32(1 - share))
