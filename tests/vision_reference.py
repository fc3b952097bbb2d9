"""The image side once more, in float64 numpy, written plainly from what is known of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from references import Array, Weights, softmax


def image_tokens(
    weights: Weights, pixels: NDArray[np.uint8], *, heads: int, tokens: int, hidden: int
) -> Array:
    """The image tokens [tokens, hidden] of one image, its pixels 0 to 255 as [3, side, side]."""
    return adaptive_mean(siglip(weights, pixels, heads=heads), tokens, hidden)


def siglip(weights: Weights, pixels: NDArray[np.uint8], *, heads: int) -> Array:
    """The last states of a SigLIP vision model, one row a patch."""
    w = {name: value.astype(float) for name, value in weights.items()}
    x = (pixels.astype(float) / 255 - 0.5) / 0.5
    kernel = w["embeddings.patch_embedding.weight"]
    size = kernel.shape[-1]
    rows = []
    for top in range(0, x.shape[1], size):
        for left in range(0, x.shape[2], size):
            patch = x[:, top : top + size, left : left + size]
            rows.append([(kernel[i] * patch).sum() for i in range(len(kernel))])
    h = np.array(rows) + w["embeddings.patch_embedding.bias"]
    h = h + w["embeddings.position_embedding.weight"]
    layer = 0
    while f"encoder.layers.{layer}.mlp.fc1.weight" in w:
        p = f"encoder.layers.{layer}."
        n = norm(h, w, p + "layer_norm1")
        q, k, v = (linear(n, w, f"{p}self_attn.{name}_proj") for name in "qkv")
        width = h.shape[1] // heads
        parts = []
        for head in range(heads):
            mine = slice(head * width, (head + 1) * width)
            parts.append(softmax(q[:, mine] @ k[:, mine].T / math.sqrt(width)) @ v[:, mine])
        h = h + linear(np.concatenate(parts, axis=1), w, p + "self_attn.out_proj")
        wide = linear(norm(h, w, p + "layer_norm2"), w, p + "mlp.fc1")
        tanh = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
        h = h + linear(wide * (1 + tanh) / 2, w, p + "mlp.fc2")
        layer += 1
    return norm(h, w, "post_layernorm")


def adaptive_mean(states: Array, rows: int, columns: int) -> Array:
    """Cell (i, j) is the mean over the part of the states that it covers, rounded outwards."""
    high, wide = states.shape
    pooled = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * high // rows, -(-(i + 1) * high // rows)
            left, right = j * wide // columns, -(-(j + 1) * wide // columns)
            pooled[i, j] = states[top:bottom, left:right].mean()
    return pooled


def linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(x: Array, w: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return w[name + ".weight"] * scaled + w[name + ".bias"]
