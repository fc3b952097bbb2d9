"""Texts and images to vectors by a trained student, many at a time, raw and in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from student.model import POOLED, Student

FloatArray = NDArray[np.float32]

ENCODE_BATCH = 64


@torch.inference_mode()
def encode(
    student: Student,
    texts: Sequence[str],
    heads: Sequence[str],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, FloatArray]:
    """The student's vectors of texts, raw, in fp32: for each head [n, D], and `pooled` [n, H].

    The first columns of a head are asked for as in a stage: `fc1[:512]`.

    Raises:
        StageError: a head that is not there, or not as wide as asked.
    """
    student.eval()
    device = next(student.parameters()).device
    lengths = [len(text) for text in texts]
    order = np.argsort(lengths, kind="stable")
    found: dict[str, list[FloatArray]] = {name: [] for name in (POOLED, *heads)}
    for start in range(0, len(order), ENCODE_BATCH):
        chosen = order[start : start + ENCODE_BATCH]
        batch = student.batch([texts[i] for i in chosen], chunks=1).to(device)
        pooled = student.pooled(batch)
        outputs = {POOLED: pooled, **student.project(pooled, heads)}
        for name, vectors in outputs.items():
            found[name].append(vectors.cpu().numpy())
        advance(len(chosen))
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


@torch.inference_mode()
def encode_images(
    student: Student,
    pixels: Sequence[torch.Tensor],
    heads: Sequence[str],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, FloatArray]:
    """The student's vectors of images, as `encode` gives those of texts."""
    student.eval()
    device = next(student.parameters()).device
    found: dict[str, list[FloatArray]] = {name: [] for name in (POOLED, *heads)}
    for start in range(0, len(pixels), ENCODE_BATCH):
        chosen = pixels[start : start + ENCODE_BATCH]
        outputs = student(student.batch(chosen, chunks=1).to(device), (POOLED, *heads))
        for name, vectors in outputs.items():
            found[name].append(vectors.float().cpu().numpy())
        advance(len(chosen))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def unit(vectors: FloatArray) -> FloatArray:
    """The rows at length 1, in fp32."""
    vectors = vectors.astype(np.float32)
    norms: FloatArray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms
