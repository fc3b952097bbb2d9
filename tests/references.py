"""Stella and NV-Embed-v2 once more, in float64 numpy, written plainly from what is known of them.

One text at a time, one head at a time, no padding, nothing folded or cached; neither the encoders
nor any model class is imported.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, NDArray[np.float32]]

erf = np.vectorize(math.erf, otypes=[np.float64])


def stella(weights: Weights, dense: Weights, ids: list[int], *, heads: int, kv_heads: int) -> Array:
    """The vector of one text, not normalised."""
    states = decoder(
        weights, "model.", ids, heads=heads, kv_heads=kv_heads, theta=1e6, epsilon=1e-6
    )
    return dense["linear.weight"].astype(float) @ states.mean(0) + dense["linear.bias"]


def nv_embed(
    weights: Weights, ids: list[int], pooled_from: int, *, heads: int, kv_heads: int, cross: int
) -> Array:
    """The vector of one text, L2-normalised, its mean taken from token `pooled_from` on."""
    states = decoder(
        weights, "embedding_model.", ids, heads=heads, kv_heads=kv_heads, theta=1e4, epsilon=1e-5
    )
    states = latent_attention(weights, "latent_attention_model.", states, heads=cross)
    mean = states[pooled_from:].mean(0)
    vector: Array = mean / np.sqrt((mean**2).sum())
    return vector


def decoder(
    weights: Weights,
    prefix: str,
    ids: list[int],
    *,
    heads: int,
    kv_heads: int,
    theta: float,
    epsilon: float,
) -> Array:
    """Token states [L, H] of a pre-norm decoder in which every token sees every token."""
    w = {key.removeprefix(prefix): value.astype(float) for key, value in weights.items()}
    h = w["embed_tokens.weight"][ids]
    width = h.shape[1] // heads
    layers = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("layers."))
    for i in range(layers):
        p = f"layers.{i}."
        x = rms_norm(h, w[p + "input_layernorm.weight"], epsilon)
        q, k, v = (
            x @ w[f"{p}self_attn.{n}_proj.weight"].T + w.get(f"{p}self_attn.{n}_proj.bias", 0.0)
            for n in "qkv"
        )
        attended = np.zeros_like(h)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            mine = slice(head * width, (head + 1) * width)
            theirs = slice(shared * width, (shared + 1) * width)
            scores = rotate(q[:, mine], theta) @ rotate(k[:, theirs], theta).T / math.sqrt(width)
            attended[:, mine] = softmax(scores) @ v[:, theirs]
        h = h + attended @ w[p + "self_attn.o_proj.weight"].T
        x = rms_norm(h, w[p + "post_attention_layernorm.weight"], epsilon)
        gate = x @ w[p + "mlp.gate_proj.weight"].T
        up = x @ w[p + "mlp.up_proj.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return rms_norm(h, w["norm.weight"], epsilon)


def latent_attention(weights: Weights, prefix: str, h: Array, *, heads: int) -> Array:
    """Tokens attend to the latents, then a GEGLU layer; both are added to the token's state."""
    w = {key.removeprefix(prefix): value.astype(float) for key, value in weights.items()}
    p = "cross_attend_blocks.0."
    x = layer_norm(h, w[p + "norm.weight"], w[p + "norm.bias"])
    context = layer_norm(w["latents"], w[p + "norm_context.weight"], w[p + "norm_context.bias"])
    q = x @ w[p + "fn.to_q.weight"].T
    kv = context @ w[p + "fn.to_kv.weight"].T
    inner = q.shape[1]
    k, v = kv[:, :inner], kv[:, inner:]
    attended = np.zeros_like(q)
    width = inner // heads
    for head in range(heads):
        mine = slice(head * width, (head + 1) * width)
        attended[:, mine] = softmax(q[:, mine] @ k[:, mine].T / math.sqrt(width)) @ v[:, mine]
    h = attended @ w[p + "fn.to_out.weight"].T + h
    p = "cross_attend_blocks.1."
    x = layer_norm(h, w[p + "norm.weight"], w[p + "norm.bias"])
    wide = x @ w[p + "fn.net.0.weight"].T + w[p + "fn.net.0.bias"]
    half = wide.shape[1] // 2
    linear, gate = wide[:, :half], wide[:, half:]
    gated = linear * (gate * (1 + erf(gate / math.sqrt(2))) / 2)
    return gated @ w[p + "fn.net.2.weight"].T + w[p + "fn.net.2.bias"] + h


def rotate(x: Array, theta: float) -> Array:
    """Rotary embedding: position m turns the plane (j, j + width/2) by m·theta^(-2j/width)."""
    length, width = x.shape
    half = width // 2
    turned = np.empty_like(x)
    for m in range(length):
        for j in range(half):
            angle = m * theta ** (-2 * j / width)
            a, b = x[m, j], x[m, j + half]
            turned[m, j] = a * math.cos(angle) - b * math.sin(angle)
            turned[m, j + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + bias


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
