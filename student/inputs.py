"""What a student is given: texts and images as rows of tokens, or pooled states known already.

Shape suffixes: B rows, L tokens, K images, C channels of colour, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a chunk of rows: `pixels` uint8 [K, C, S, S], and where their tokens go.

    Image k has the places from `starts[k]` on in row `rows[k]`.
    """

    pixels: Tensor
    rows: Tensor
    starts: Tensor

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        return Images(self.pixels.to(device), self.rows.to(device), self.starts.to(device))


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts and images, tokenised, in chunks of similar length so that little padding is computed.

    `chunks` are pairs of token ids and attention mask, both [b, L]; `order` [B] takes the
    chunks' rows, one after the other, back to the order of the texts. `images` are each chunk's,
    where any row is an image.
    """

    chunks: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor
    images: tuple[Images | None, ...] = ()

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on a device."""
        chunks = tuple((ids.to(device), mask.to(device)) for ids, mask in self.chunks)
        images = tuple(found and found.to(device) for found in self.images)
        return TextBatch(chunks, self.order.to(device), images)

    def apart(self) -> list[TextBatch]:
        """Each chunk as a batch of its own, its texts in the order of its rows."""
        return [
            TextBatch(
                (chunk,),
                torch.arange(len(chunk[0]), device=self.order.device),
                self.images[place : place + 1],
            )
            for place, chunk in enumerate(self.chunks)
        ]


@dataclass(frozen=True, slots=True)
class PooledBatch:
    """Texts of which the pooled states [B, H] are known already: the body is not asked."""

    states: Tensor

    def to(self, device: torch.device) -> PooledBatch:
        """The same batch on a device."""
        return PooledBatch(self.states.to(device))


StudentBatch = TextBatch | PooledBatch


def images_of(items: Sequence[str | Tensor], first: int) -> Images | None:
    """A chunk's images, whose tokens begin at `first` in their rows; None where it has none."""
    rows = [row for row, item in enumerate(items) if not isinstance(item, str)]
    if not rows:
        return None
    pixels = torch.stack([item for item in items if not isinstance(item, str)])
    return Images(pixels, torch.tensor(rows), torch.full((len(rows),), first))


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids at one length [B, L], and the mask of what is no padding."""
    longest = max(1, max(map(len, rows)))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
