"""The native teachers at full size with random weights, made on the device: nothing is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MistralConfig, MistralModel, Qwen2Config, Qwen2Model

from teacher_cache.encoders import body as bodies
from teacher_cache.encoders.latent_attention import LatentAttention, LatentSizes
from teacher_cache.encoders.nv_embed import NvEmbedEncoder
from teacher_cache.encoders.stella import StellaEncoder
from teacher_cache.teachers import TeacherSpec, resolve

STELLA = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_646,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "use_sliding_window": False,
}  # fmt: skip
STELLA_WIDTH = 8192
NV_EMBED = {
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_000,
    "rope_theta": 1e4, "rms_norm_eps": 1e-5, "sliding_window": None,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip
TINY_LATENT = {"latent_dim": 64, "hidden_dim": 64, "num_latents_value": 16, "cross_dim_head": 64}


@dataclass(frozen=True)
class Subject:
    """An encoder and what its arithmetic costs.

    `parameters` are those of the matrices that every token passes, `score_width` the sum over the
    layers of the width that a token's attention scores and values have.
    """

    encoder: Any
    parameters: int
    score_width: int
    vocabulary: int

    def flop(self, lengths: NDArray[np.int64]) -> float:
        """Floating-point operations on real tokens: two a parameter, four a score and column."""
        tokens, pairs = float(lengths.sum()), float((lengths**2).sum())
        return 2 * self.parameters * tokens + 4 * self.score_width * pairs


def stella(device: torch.device, tiny: bool) -> Subject:
    fields = {**STELLA, **(TINY if tiny else {})}
    body = _body(Qwen2Model, Qwen2Config, fields, device)
    dense = {"weight": (STELLA_WIDTH, fields["hidden_size"]), "bias": (STELLA_WIDTH,)}
    head = dict(_random(dense, device, torch.float32))
    encoder = StellaEncoder(
        body, head["weight"], head["bias"], _no_tokenizer(), device, token_budget=None
    )
    return _subject(encoder, body, 0)


def nv_embed(device: torch.device, tiny: bool) -> Subject:
    fields = {**NV_EMBED, **(TINY if tiny else {})}
    latent_fields = TINY_LATENT if tiny else {}
    sizes = LatentSizes.from_config(latent_fields, fields["hidden_size"], __file__)
    latents = dict(_random(sizes.shapes(), device, torch.float32))
    layer = LatentAttention(latents, sizes, torch.bfloat16)
    del latents
    body = _body(MistralModel, MistralConfig, fields, device)
    encoder = NvEmbedEncoder(
        body, layer, _no_tokenizer(), resolve(TeacherSpec(name="nv-embed-v2")), device, None
    )
    # As it is computed, with keys and values folded into matrices; as published it would be more.
    gated = sizes.mult * sizes.width * sizes.width
    return _subject(encoder, body, 2 * sizes.heads * sizes.latents * sizes.width + 3 * gated)


SUBJECTS = {"stella": stella, "nv-embed": nv_embed}


def _subject(encoder: Any, body: Any, further: int) -> Subject:
    matrices = {name: p for name, p in body.named_parameters() if p.ndim == 2}
    embedding = matrices.pop("embed_tokens.weight")
    config = body.config
    return Subject(
        encoder,
        parameters=further + sum(p.numel() for p in matrices.values()),
        score_width=config.num_hidden_layers * config.hidden_size,
        vocabulary=len(embedding),
    )


def _body(model: Any, config: Any, fields: Mapping[str, Any], device: torch.device) -> Any:
    body = bodies.empty_body(model, config, fields, __file__)
    shapes = bodies.expected_shapes(body, "")
    return bodies.fill(body, _random(shapes, device, torch.bfloat16), device)


def _random(
    shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights that keep the scale of what passes them; norms pass it on as it is."""
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in shapes.items():
        if len(shape) == 1:
            kind = torch.ones if name.endswith("weight") else torch.zeros
            yield name, kind(shape, device=device, dtype=dtype)
        else:
            drawn = torch.randn(shape, device=device, dtype=dtype, generator=generator)
            yield name, drawn.mul_(shape[-1] ** -0.5)


def _no_tokenizer() -> Any:
    """What an encoder asks of its tokenizer once texts are token ids."""
    return SimpleNamespace(pad_id=0, eos_id=0, count=len)
