"""Texts and images to vectors by a trained student, many at a time, raw and in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from student.model import Student
from student.spec import POOLED
from student.stages import width_of

FloatArray = NDArray[np.float32]

ENCODE_BATCH = 64


@torch.inference_mode()
def encode(
    student: Student,
    texts: Sequence[str],
    heads: Sequence[str],
    *,
    batch_size: int = ENCODE_BATCH,
    prompt: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, FloatArray]:
    """The student's vectors of texts, raw, in fp32: for each head [n, D], and `pooled` [n, H].

    The first columns of a head are asked for as in a stage: `fc1[:512]`. `prompt` stands in for
    the student's own.

    Raises:
        StageError: a head that is not there, or not as wide as asked.
    """
    student.eval()
    device = next(student.parameters()).device
    lengths = [len(text) for text in texts]
    order = np.argsort(lengths, kind="stable")
    found = _none_yet(student, heads)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = student.batch([texts[i] for i in chosen], chunks=1, prompt=prompt).to(device)
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
    batch_size: int = ENCODE_BATCH,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, FloatArray]:
    """The student's vectors of images, as `encode` gives those of texts."""
    student.eval()
    device = next(student.parameters()).device
    found = _none_yet(student, heads)
    for start in range(0, len(pixels), batch_size):
        chosen = pixels[start : start + batch_size]
        outputs = student(student.batch(chosen, chunks=1).to(device), (POOLED, *heads))
        for name, vectors in outputs.items():
            found[name].append(vectors.float().cpu().numpy())
        advance(len(chosen))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _none_yet(student: Student, heads: Sequence[str]) -> dict[str, list[FloatArray]]:
    """For each vector the rows of no text: what rows are put behind, and all that none leave."""
    widths = {POOLED: student.hidden}
    widths |= {name: width_of(name, student.head_widths) for name in heads if name != POOLED}
    return {name: [np.empty((0, width), np.float32)] for name, width in widths.items()}


def unit(vectors: FloatArray) -> FloatArray:
    """The rows at length 1, in fp32."""
    vectors = vectors.astype(np.float32)
    norms: FloatArray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms
