"""From tokenised texts to vectors in their order: sort by length, batch by token budget.

Sorted, a batch holds texts of nearly one length, so that padding costs about 1 % where random
batches of 32 cost 79 %; a budget of padded tokens keeps the memory of every batch the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.encoders.protocol import Encoded, IntArray
from teacher_cache.teachers import TeacherError

if TYPE_CHECKING:
    from teacher_cache.encoders.layout import Collate

Forward = Callable[[Any], torch.Tensor]
"""A batch as `collate` makes it → vectors [B, width], and behind them, where pooled states are
kept, those: [B, width + H]."""

_TOKENS_ON_GPU = 32_768
_TOKENS_ELSEWHERE = 2048
"""Padded tokens in a batch: with fewer a device idles, with more the memory is for nothing. On a
CPU the activations of one layer should stay in its caches: on two cores all-MiniLM-L6-v2 was 1.4
times as fast with 2,048 as with 16,384 (benchmarks/encode.py)."""

_IN_FLIGHT = 2
"""Batches that may run ahead of their vectors: one computing, one queued behind it."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of each text, special tokens included, never padded.

    `pooled_from` [n] is the first position that enters the pooling: what lies before it (an
    instruction) is attended only.
    """

    ids: Sequence[IntArray]
    pooled_from: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text."""
        return np.fromiter((len(row) for row in self.ids), np.int32, len(self.ids))


def token_budget_of(device: torch.device, asked: int | None) -> int:
    """The padded tokens of a batch: those asked for, otherwise what suits the device."""
    return asked or (_TOKENS_ON_GPU if device.type == "cuda" else _TOKENS_ELSEWHERE)


def plan_batches(lengths: NDArray[np.integer], token_budget: int) -> list[NDArray[np.intp]]:
    """Split texts into batches of similar length, longest first.

    A batch holds as many texts as fit `token_budget` when padded to its longest, and at least
    one. Longest first: what does not fit the memory shows in the first batch, not after an hour.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, token_budget // longest)
        batches.append(order[start:stop])
        start = stop
    return batches


def padding_waste(lengths: NDArray[np.integer], batches: Sequence[NDArray[np.intp]]) -> float:
    """Padded tokens over real tokens: 1.0 wastes nothing."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return padded / max(int(lengths.sum()), 1)


def encode_batches(
    tokenized: Tokenized,
    forward: Forward,
    width: int,
    *,
    collate: Collate,
    device: torch.device,
    token_budget: int,
    on_done: Callable[[int], None],
    pooled_width: int | None = None,
) -> Encoded:
    """Run `forward` over length-sorted batches; vectors return in the order of the texts.

    `collate` lays the texts of a batch out, see `teacher_cache.encoders.layout`.

    On a GPU the host runs ahead: it hands over the next batches while one is computed, and waits
    for vectors only when `_IN_FLIGHT` batches are on their way. `on_done` is told of a batch when
    its vectors have arrived.

    A batch that runs out of memory is replanned, with all that remains, at half its size.

    Raises:
        TeacherError: a single text does not fit the memory.
    """
    lengths = tokenized.lengths
    vectors = np.empty((len(lengths), width + (pooled_width or 0)), np.float32)
    waiting = plan_batches(lengths, token_budget)[::-1]
    in_flight: deque[_Flight] = deque()

    def land(limit: int) -> None:
        while len(in_flight) > limit:
            flight = in_flight.popleft()
            vectors[flight.batch] = flight.arrived()
            on_done(len(flight.batch))

    while waiting:
        batch = waiting.pop()
        try:
            with torch.inference_mode():
                laid_out = collate([tokenized.ids[i] for i in batch], tokenized.pooled_from[batch])
                in_flight.append(_Flight.of(batch, forward(laid_out.to(device))))
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(batch) == 1:
                raise TeacherError(
                    f"one text of {lengths[batch[0]]} tokens does not fit the memory of {device}; "
                    "lower max_tokens or use another dtype"
                ) from error
            fits = False
        else:
            fits = True
        # Outside of the handler: while it runs, the traceback holds the batch's activations.
        if fits:
            land(_IN_FLIGHT)
            continue
        land(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        longest = int(lengths[batch].max())
        token_budget = max(longest * len(batch) // 2, longest)
        rest = np.concatenate([batch, *waiting[::-1]])
        waiting = [rest[part] for part in plan_batches(lengths[rest], token_budget)][::-1]
    land(0)
    pooled = None if pooled_width is None else vectors[:, width:]
    return Encoded(vectors[:, :width], lengths, pooled)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch whose vectors are on their way to the host."""

    batch: NDArray[np.intp]
    vectors: torch.Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, batch: NDArray[np.intp], output: torch.Tensor) -> _Flight:
        """Start the copy; on a GPU it runs behind the computation, into pinned memory."""
        output = output.float()
        if output.device.type != "cuda":
            return cls(batch, output.cpu(), None)
        pinned = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
        pinned.copy_(output, non_blocking=True)
        return cls(batch, pinned, torch.cuda.current_stream(output.device).record_event())

    def arrived(self) -> NDArray[np.float32]:
        """The vectors, when they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.vectors.numpy()
