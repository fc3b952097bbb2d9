"""A trained student to embed texts and images with: `from student import load`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.images import ImageError, Preprocessing
from student.encoding import ENCODE_BATCH, FloatArray, encode, encode_images, unit
from student.model import Student
from student.model import load as load_student
from student.released import load_released
from student.spec import POOLED, StudentError
from student.stages import FULL_HEAD, width_of
from student.trained import Heads, find

if TYPE_CHECKING:
    from PIL.Image import Image

SORTED_TOGETHER = 2048
"""Texts that are sorted by length together: hardly any padding is left, and few vectors are in
memory twice."""


def load(path: Path | str, *, device: str | None = None) -> Embedder:
    """A trained student: a run (its last stage), a stage of it, a stage's `model` folder, or a
    folder in the released Jasper checkpoint's layout.

    Without a device: the GPU where there is one, else the CPU.

    Raises:
        StudentError: no student lies there, or a part of it is missing or damaged.
    """
    found = find(Path(path))
    student = load_released(found.folder) if found.released else load_student(found.folder)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Embedder(student.to(chosen), found.heads)


class Embedder:
    """Vectors of texts and images by a trained student.

    It keeps nothing between calls: threads may share one.
    """

    def __init__(self, student: Student, heads: Heads) -> None:
        self._student = student.eval()
        self._heads = heads

    @property
    def heads(self) -> dict[str, int]:
        """The width of each trained head, or of first columns of one, FC1 first."""
        return {head: width_of(head, self._heads.widths) for head in self._heads.trained}

    @property
    def max_tokens(self) -> int:
        """The longest input; what is longer is cut."""
        return self._student.spec.max_tokens

    @property
    def prompt(self) -> str:
        """What is put before every text, unless another prompt is given."""
        return self._student.spec.prompt

    @property
    def reads_images(self) -> bool:
        """Whether the student has an image side."""
        return self._student.vision is not None

    def __repr__(self) -> str:
        heads = ", ".join(f"{head} {width}" for head, width in self.heads.items())
        reads = "texts and images" if self.reads_images else "texts"
        return f"Embedder({heads} wide; {reads} of at most {self.max_tokens} tokens)"

    def width(self, head: str | int = FULL_HEAD) -> int:
        """How wide the vectors of a head are.

        Raises:
            StudentError: a head that is not there or was not trained.
            StageError: more columns than the head has.
        """
        return self._width(self._heads.choose(head))

    def encode(
        self,
        texts: Sequence[str],
        *,
        head: str | int = FULL_HEAD,
        normalize: bool = True,
        batch_size: int = ENCODE_BATCH,
        prompt: str | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> FloatArray:
        """The vectors [n, width] of texts, in their order, at length 1 unless told otherwise.

        `head` is a head's name (`fc2`), its width (`1024`), its first columns (`fc1[:512]`), or
        `pooled`: the body's own state. `prompt` stands in for the student's.

        Raises:
            TypeError: a text alone, which would be read letter by letter, or an item that is none.
            StudentError: a head that is not there or was not trained.
            StageError: more columns than the head has.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts; for one text: encode([text])[0]")
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {place} is no str, but {type(text).__name__}")
        chosen = self._heads.choose(head)
        vectors = np.empty((len(texts), self._width(chosen)), np.float32)
        for start in range(0, len(texts), SORTED_TOGETHER):
            found = encode(
                self._student,
                texts[start : start + SORTED_TOGETHER],
                [chosen],
                batch_size=batch_size,
                prompt=prompt,
                advance=advance,
            )[chosen]
            vectors[start : start + len(found)] = unit(found) if normalize else found
        return vectors

    def encode_images(
        self,
        images: Sequence[Path | str | bytes | Image],
        *,
        head: str | int = FULL_HEAD,
        normalize: bool = True,
        batch_size: int = ENCODE_BATCH,
        advance: Callable[[int], None] = lambda _: None,
    ) -> FloatArray:
        """The vectors [n, width] of images, as `encode` gives those of texts.

        An image is a file, its bytes, or Pillow's.

        Raises:
            TypeError: an image alone.
            ImageError: an image cannot be used; it says which.
            StudentError: the student has no image side, or lacks the head.
            StageError: more columns than the head has.
        """
        if isinstance(images, str | bytes | Path) or not isinstance(images, Sequence):
            raise TypeError("encode_images takes a list of images; for one: encode_images([image])")
        chosen = self._heads.choose(head)
        vision = self._student.vision
        if vision is None:
            raise StudentError("the student reads texts alone: it has no image side")
        vectors = np.empty((len(images), self._width(chosen)), np.float32)
        for start in range(0, len(images), batch_size):
            pixels = [
                _pixels(vision.preprocessing, image, place)
                for place, image in enumerate(images[start : start + batch_size], start)
            ]
            found = encode_images(
                self._student, pixels, [chosen], batch_size=batch_size, advance=advance
            )[chosen]
            vectors[start : start + len(found)] = unit(found) if normalize else found
        return vectors

    def _width(self, chosen: str) -> int:
        if chosen == POOLED:
            return self._student.hidden
        return width_of(chosen, self._heads.widths)


def _pixels(
    preprocessing: Preprocessing, image: Path | str | bytes | Image, place: int
) -> torch.Tensor:
    try:
        data = Path(image).read_bytes() if isinstance(image, Path | str) else image
        return torch.from_numpy(preprocessing.pixels(data))
    except (ImageError, OSError) as error:
        name = image if isinstance(image, Path | str) else f"image {place}"
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: {why}") from None
