"""The target that all losses see: the teachers' unit blocks, weighed, as one unit vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from teacher_cache.format import Block


def weigh(target_BT: Tensor, blocks: Sequence[Block], weights: Mapping[str, float]) -> Tensor:
    """norm(w₁·norm(block₁) ‖ w₂·norm(block₂) ‖ …) of each row [B, T], in float32 at least.

    `blocks` are the target's, in their order; a teacher without a weight has 1. Where all weigh the
    same the rows are given back as they are, bit for bit: the cache holds that very vector.

    With c_k the cosine of two texts under teacher k, their targets' cosine is Σ w_k²·c_k / Σ w_k²;
    a student's cosine with its target is Σ w_k·(s_k·t_k) / √Σ w_k², of its slices s_k.
    """
    factors = [weights.get(block.teacher, 1.0) for block in blocks]
    if len(set(factors)) == 1:
        return target_BT
    wide_BT = target_BT.to(torch.promote_types(target_BT.dtype, torch.float32))
    parts = torch.split(wide_BT, [block.width for block in blocks], dim=1)
    weighed = [w * F.normalize(part, dim=1) for w, part in zip(factors, parts, strict=True)]
    return F.normalize(torch.cat(weighed, dim=1), dim=1)
