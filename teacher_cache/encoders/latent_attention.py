"""NV-Embed's latent attention, with everything that no text changes computed once, at loading.

Every token attends to N learned latents (8 heads, each as wide as the model), then passes a
GEGLU feed-forward layer; both add to the token's own state. The latents are the same for every
text, so their keys and values are too, and a head's query and output matrices can be multiplied
into them for good:

    score = (x Wq_h) · k_h / √D   =  x · (k_h Wq_h) / √D        → `keys`   [A·N, H]
    out   = Σ_h p_h v_h Wo_hᵀ     =  Σ_h p_h · (v_h Wo_hᵀ)      → `values` [H, A·N]

At the full size that turns 604 MFLOP a token into 67, and 2 GB of queries for a batch into none.
The products are taken in fp32 and cast once, so lower precision rounds less often than the
original's order of operations.

Shape suffixes: B texts, L tokens, H hidden width, A heads, D head width, N latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F

from teacher_cache.encoders.checkpoint import Shape
from teacher_cache.teachers import TeacherError

_ATTEND = "cross_attend_blocks.0"
_FEED = "cross_attend_blocks.1"


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """The layer's sizes: N latents of width H, A heads of width D, `mult`·H behind the gate."""

    latents: int
    width: int
    heads: int
    head_width: int
    mult: int

    @classmethod
    def from_config(cls, fields: Mapping[str, Any], hidden: int, where: str) -> Self:
        """Read `latent_attention_config`; what it leaves out has NV-Embed-v2's value.

        Raises:
            TeacherError: the latents are not as wide as the body's states.
        """
        widths = {name: fields.get(name, 4096) for name in ("latent_dim", "hidden_dim")}
        if set(widths.values()) != {hidden}:
            raise TeacherError(
                f"{where}: expected latents as wide as the body ({hidden}), found {widths}"
            )
        return cls(
            latents=int(fields.get("num_latents_value", 512)),
            width=hidden,
            heads=int(fields.get("num_cross_heads", 8)),
            head_width=int(fields.get("cross_dim_head", 4096)),
            mult=int(fields.get("mult", 4)),
        )

    def shapes(self) -> dict[str, Shape]:
        """Every key of the layer in a checkpoint, with its shape."""
        wide, inner, gated = self.width, self.heads * self.head_width, self.mult * self.width
        return {
            "latents": (self.latents, wide),
            f"{_ATTEND}.norm.weight": (wide,),
            f"{_ATTEND}.norm.bias": (wide,),
            f"{_ATTEND}.norm_context.weight": (wide,),
            f"{_ATTEND}.norm_context.bias": (wide,),
            f"{_ATTEND}.fn.to_q.weight": (inner, wide),
            f"{_ATTEND}.fn.to_kv.weight": (2 * inner, wide),
            f"{_ATTEND}.fn.to_out.weight": (wide, inner),
            f"{_FEED}.norm.weight": (wide,),
            f"{_FEED}.norm.bias": (wide,),
            f"{_FEED}.fn.net.0.weight": (2 * gated, wide),
            f"{_FEED}.fn.net.0.bias": (2 * gated,),
            f"{_FEED}.fn.net.2.weight": (wide, gated),
            f"{_FEED}.fn.net.2.bias": (wide,),
        }


class LatentAttention:
    """The layer, ready to run: token states in, token states out."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], sizes: LatentSizes, dtype: torch.dtype
    ) -> None:
        """Take the checkpoint's tensors (in fp32, on their device) and fold what never changes."""
        self.heads = sizes.heads
        self.keys, self.values = _fold(weights, sizes, dtype)
        kept = {name: weights[name].to(dtype) for name in sizes.shapes() if _is_kept(name)}
        self._attend_norm = (kept[f"{_ATTEND}.norm.weight"], kept[f"{_ATTEND}.norm.bias"])
        self._feed_norm = (kept[f"{_FEED}.norm.weight"], kept[f"{_FEED}.norm.bias"])
        self._widen = (kept[f"{_FEED}.fn.net.0.weight"], kept[f"{_FEED}.fn.net.0.bias"])
        self._narrow = (kept[f"{_FEED}.fn.net.2.weight"], kept[f"{_FEED}.fn.net.2.bias"])

    def __call__(self, states_BLH: torch.Tensor) -> torch.Tensor:
        """Apply the layer to every token by itself. No token sees another, so no mask is needed."""
        normed_BLH = _layer_norm(states_BLH, *self._attend_norm)
        scores_BLAN = F.linear(normed_BLH, self.keys).view(*states_BLH.shape[:2], self.heads, -1)
        shares_BLAN = scores_BLAN.softmax(-1, dtype=torch.float32).to(states_BLH.dtype)
        states_BLH = F.linear(shares_BLAN.flatten(-2), self.values) + states_BLH
        widened = F.linear(_layer_norm(states_BLH, *self._feed_norm), *self._widen)
        linear, gate = widened.chunk(2, dim=-1)
        # The exact GELU: its tanh form is 5e-4 away, a hundred times the agreement asked for.
        return F.linear(linear * F.gelu(gate), *self._narrow) + states_BLH


def _fold(
    weights: Mapping[str, torch.Tensor], sizes: LatentSizes, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    latents_NH = _layer_norm(
        weights["latents"],
        weights[f"{_ATTEND}.norm_context.weight"],
        weights[f"{_ATTEND}.norm_context.bias"],
    )
    heads = (sizes.heads, sizes.head_width)
    kv = F.linear(latents_NH, weights[f"{_ATTEND}.fn.to_kv.weight"])
    keys_AND, values_AND = kv.view(sizes.latents, 2, *heads).permute(1, 2, 0, 3)
    query_ADH = weights[f"{_ATTEND}.fn.to_q.weight"].view(*heads, sizes.width)
    out_ADH = weights[f"{_ATTEND}.fn.to_out.weight"].T.reshape(*heads, sizes.width)
    keys_ANH = keys_AND @ query_ADH * sizes.head_width**-0.5
    # What all latents of a head share moves no softmax, but would cost bits in half precision.
    keys_ANH -= keys_ANH.mean(1, keepdim=True)
    values_ANH = values_AND @ out_ADH
    return keys_ANH.flatten(0, 1).to(dtype), values_ANH.flatten(0, 1).T.contiguous().to(dtype)


def _is_kept(name: str) -> bool:
    return name.startswith((_FEED, f"{_ATTEND}.norm."))


def _layer_norm(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(states, weight.shape, weight, bias)
