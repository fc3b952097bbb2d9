"""A batch of texts as a body takes it: padded to its longest, or packed into one row.

Both layouts give the same vectors but for rounding. Padded rows need an attention mask, and under a
mask the device's fastest attention kernel may not run: it has none, and grouped keys and values are
then copied out for every query head. Packed texts lie one behind the other, each attends to its own
tokens only, and nothing is computed for padding.

Shape suffixes: B texts, L tokens of the longest, T tokens of all, H hidden width, A attention
heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel

from teacher_cache.encoders import body as bodies
from teacher_cache.encoders.protocol import IntArray

PACKED = "jasper_packed"
"""The name of the packed attention among transformers' attention functions."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Texts as the rows of a rectangle, `mask_BL` 1 on their tokens.

    `pooled_from_B` is each text's first pooled position in its row.
    """

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    pooled_from_B: torch.Tensor

    @classmethod
    def of(
        cls, rows: Sequence[IntArray], pooled_from: IntArray, *, pad_id: int, pad_left: bool = False
    ) -> Self:
        """Lay texts out; a batch is at least one token long."""
        longest = max(1, max(len(row) for row in rows))
        ids = np.full((len(rows), longest), pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        first = pooled_from.astype(np.int64)
        for i, row in enumerate(rows):
            start = longest - len(row) if pad_left else 0
            ids[i, start : start + len(row)] = row
            mask[i, start : start + len(row)] = 1
            first[i] += start
        return cls(*map(torch.from_numpy, (ids, mask, first)))

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        tensors = (self.ids_BL, self.mask_BL, self.pooled_from_B)
        return type(self)(*(_moved(tensor, device) for tensor in tensors))

    def states(self, body: PreTrainedModel) -> torch.Tensor:
        """The body's last states [B, L, H]."""
        bodies.use_attention(body, "sdpa")
        return bodies.token_states(body, self.ids_BL, self.mask_BL)

    def mean(self, states_BLH: torch.Tensor) -> torch.Tensor:
        """Mean state [B, H] of each text over its pooled tokens, in fp32."""
        place_L = torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device)
        pooled_BL = self.mask_BL.bool() & (place_L >= self.pooled_from_B[:, None])
        return bodies.masked_mean(states_BLH, pooled_BL)


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts one behind the other in a single row of T tokens.

    `bounds` [B + 1] are the positions where texts begin, and the end; `place_1T` counts each
    text's tokens from 0; `pooled_T` is 1 on tokens that are pooled; `longest` is in tokens.
    """

    longest: int
    ids_1T: torch.Tensor
    place_1T: torch.Tensor
    pooled_T: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[IntArray], pooled_from: IntArray) -> Self:
        """Lay texts out. None may be empty: it would have no mean."""
        lengths = np.array([len(row) for row in rows])
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        place = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        pooled = (place >= np.repeat(pooled_from, lengths)).astype(np.float32)
        ids = np.concatenate(rows).astype(np.int64)
        tensors = [torch.from_numpy(array) for array in (ids[None], place[None], pooled, bounds)]
        return cls(int(lengths.max()), *tensors)

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        tensors = (self.ids_1T, self.place_1T, self.pooled_T, self.bounds)
        return type(self)(self.longest, *(_moved(tensor, device) for tensor in tensors))

    def states(self, body: PreTrainedModel) -> torch.Tensor:
        """The body's last states [1, T, H]."""
        bodies.use_attention(body, PACKED)
        states_1TH: torch.Tensor = body(
            input_ids=self.ids_1T,
            position_ids=self.place_1T,
            bounds=self.bounds,
            longest=self.longest,
        ).last_hidden_state
        return states_1TH

    def mean(self, states_1TH: torch.Tensor) -> torch.Tensor:
        """Mean state [B, H] of each text over its pooled tokens, in fp32."""
        bounds = self.bounds.long()
        weighed_TH = states_1TH[0].float() * self.pooled_T[:, None]
        sums_BH, counts_B = (
            torch.segment_reduce(values, "sum", offsets=bounds)
            for values in (weighed_TH, self.pooled_T)
        )
        return sums_BH / counts_B[:, None]


Batch = Padded | Packed
Collate = Callable[[Sequence[IntArray], IntArray], Batch]
"""(token ids of each text, first pooled position of each) → a batch of them."""


def laid_out(
    rows: Sequence[IntArray], pooled_from: IntArray, *, packed: bool, pad_id: int
) -> Batch:
    """Texts in the layout that is asked for; `pad_id` fills the rows of padded ones."""
    if packed:
        return Packed.of(rows, pooled_from)
    return Padded.of(rows, pooled_from, pad_id=pad_id)


def attend_packed(
    module: torch.nn.Module,
    query_1ATD: torch.Tensor,
    key_1ATD: torch.Tensor,
    value_1ATD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bounds: torch.Tensor,
    longest: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Bidirectional attention [1, T, A, D] of packed texts, each to its own tokens.

    An attention function of transformers. Scores are scaled by 1/√D, as Qwen2's and Mistral's are.
    On a GPU one kernel takes all texts; elsewhere they are taken one by one.
    """
    if query_1ATD.is_cuda:
        return _kernel()(
            query_1ATD[0].transpose(0, 1),
            key_1ATD[0].transpose(0, 1),
            value_1ATD[0].transpose(0, 1),
            cu_seq_q=bounds,
            cu_seq_k=bounds,
            max_q=longest,
            max_k=longest,
        )[None], None
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            query_1ATD[:, :, start:stop],
            key_1ATD[:, :, start:stop],
            value_1ATD[:, :, start:stop],
            enable_gqa=True,
        )
        for start, stop in pairwise(bounds.tolist())
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED, attend_packed)


@cache
def _kernel() -> Callable[..., torch.Tensor]:
    """The device's attention over packed texts, told that keys and values are grouped.

    Before torch 2.12 it takes that from their shapes and has no such argument.
    """
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn
    asks = "enable_gqa" in inspect.signature(kernel).parameters
    return partial(kernel, enable_gqa=True) if asks else kernel


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
