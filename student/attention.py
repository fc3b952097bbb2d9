"""Attention of a body that computes in bf16 on a CPU.

torch's attention has a backward pass for a CPU in fp32 only; in bf16 it takes five times as long,
a quarter of a step. The products around it are what bf16 is for, so these alone are left in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

USUAL, IN_FP32 = "sdpa", "sdpa_in_fp32"


def attend_in_fp32(body: nn.Module) -> None:
    """Let a body attend in fp32 whatever autocast says; one without torch's attention stays."""
    config: Any = body.config
    if getattr(config, "_attn_implementation", None) != USUAL:
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IN_FP32, _attend)
    AttentionMaskInterface.register(IN_FP32, sdpa_mask)
    body.set_attn_implementation(IN_FP32)  # type: ignore[operator]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **options
        )
    return found.to(query.dtype), None
