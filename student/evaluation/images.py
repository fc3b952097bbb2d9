"""Finding captions by images and images by captions, on held-out pairs, for every head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.images import ImageError
from data.pairs import Pairs
from student.encoding import ENCODE_BATCH, FloatArray, encode, encode_images, unit
from student.model import POOLED, Student

AT = (1, 5, 10)

_CHUNK = 512


def recall(
    queries: FloatArray,
    documents: FloatArray,
    asked: NDArray[np.int64],
    given: NDArray[np.int64],
) -> list[float]:
    """The share of queries with a right document among the nearest 1, 5 and 10.

    `asked` and `given` number the caption of each query and document: equal ones are right, as all
    images of one caption are. Rows are compared by cosine; of equal ones, the wrong come first.
    """
    queries, documents = unit(queries), unit(documents)
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ documents.T
        own = asked[start : start + _CHUNK, None] == given[None]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True)
        ranks[start : start + _CHUNK] = ((scores >= best) & ~own).sum(1)
    return [float((ranks < at).mean()) for at in AT]


def measure(
    student: Student,
    pairs: Pairs,
    rows: NDArray[np.int64],
    heads: Sequence[str],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Recall on these pairs, for the pooled state and each head, as plain data.

    Gives the number of `pairs` and of distinct `captions` among them, the images `passed_over`
    since they cannot be used, and for each vector recall@1, @5 and @10 from images to captions
    and from captions to images, each caption counted once. By chance recall@k from images is
    k / captions. `advance` is told of images and captions that are done.

    Raises:
        ImageError: fewer than two images can be used.
    """
    assert student.vision is not None
    preprocessing = student.vision.preprocessing
    kept: list[int] = []
    parts = []
    # Decoded batch by batch: a million held-out images are terabytes of pixels.
    for start in range(0, len(rows), ENCODE_BATCH):
        pixels = []
        for row in rows[start : start + ENCODE_BATCH].tolist():
            try:
                pixels.append(torch.from_numpy(preprocessing.pixels(pairs.source.read(row))))
                kept.append(row)
            except (ImageError, OSError):
                advance(1)
        parts.append(encode_images(student, pixels, heads, advance=advance))
    if len(kept) < 2:
        raise ImageError(f"only {len(kept)} of {len(rows)} held-out images can be used")
    captions = pairs.captions(kept)
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    of_images = np.array([numbers[caption] for caption in captions])
    of_texts = np.arange(len(numbers))
    images = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    texts = encode(student, list(numbers), heads, advance=advance)
    figures = {
        name: {
            "image to text": recall(images[name], texts[name], of_images, of_texts),
            "text to image": recall(texts[name], images[name], of_texts, of_images),
        }
        for name in (POOLED, *heads)
    }
    return {
        "pairs": len(kept),
        "captions": len(numbers),
        "passed_over": len(rows) - len(kept),
        "at": list(AT),
        "recall": figures,
    }
