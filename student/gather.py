"""One batch out of every process's share, with gradients for the rows that are one's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def gather(rows_bD: Tensor) -> Tensor:
    """The rows of all processes [B, D], in the order of the processes.

    Gradients flow to this process's rows alone. Every process computes the same loss on the same
    B rows; the engine averages their gradients, so the caller multiplies its loss by the number
    of processes to get the gradient of one loss over the whole batch.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_bD
    parts = [torch.empty_like(rows_bD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_bD.detach().contiguous())
    parts[dist.get_rank()] = rows_bD
    return torch.cat(parts)
