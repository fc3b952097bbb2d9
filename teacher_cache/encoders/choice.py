"""Which layout a teacher's batches take: measured on its weights and device before a build.

Packed texts save the padding and the mask (see `teacher_cache.encoders.layout`); whether that pays
depends on the device, the kernel and the sizes, so both are run and the faster one is kept. The two
differ by rounding alone, which is checked: builders of one cache may choose differently.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from teacher_cache.encoders.batching import Tokenized
from teacher_cache.encoders.probe import MIN_COSINE
from teacher_cache.encoders.protocol import Encoded, FloatArray
from teacher_cache.teachers import Teacher

_GAIN = 1.02
"""A packed batch must be this much faster: less is noise, and padded ones are the plainer."""

_LONGEST = 300
"""Tokens of the sample's longest text, the mean of the paper's corpus; its shortest has 10 % less,
as in a batch of texts that were sorted by length."""

_REPEATS = 3


@runtime_checkable
class TwoLayouts(Protocol):
    """What an encoder offers whose batches can be padded or packed."""

    packed: bool
    body: Any
    device: torch.device
    token_budget: int

    def encode(self, prepared: Any, on_done: Any) -> Encoded:
        """Vectors of tokenised texts."""
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """The fastest of a few runs of one batch in each layout, in seconds; the lowest cosine."""

    padded: float
    packed: float
    cosine: float

    @property
    def packed_is_better(self) -> bool:
        """Whether packing is faster and gives the same vectors."""
        return self.padded >= _GAIN * self.packed and self.cosine >= MIN_COSINE


def choose(encoder: object, teacher: Teacher) -> None:
    """Let an encoder take the faster layout, where its device has a kernel for packed texts."""
    if not isinstance(encoder, TwoLayouts) or not _has_kernel(encoder, teacher):
        return
    try:
        better = compare(encoder).packed_is_better
    except RuntimeError:
        # This build of torch lacks the kernel after all: what is sure to run stays.
        better = False
    encoder.packed = better


def compare(encoder: TwoLayouts) -> Comparison:
    """Run one batch of random tokens, as large as the encoder's budget, in both layouts."""
    generator = np.random.default_rng(0)
    count = max(1, encoder.token_budget // _LONGEST)
    lengths = np.linspace(_LONGEST * 0.9, _LONGEST, count).astype(int)
    vocabulary = encoder.body.config.vocab_size
    ids = [generator.integers(0, vocabulary, length, np.int32) for length in lengths]
    batch = Tokenized(ids, np.zeros(count, np.int32))
    before = encoder.packed
    try:
        padded, vectors = _timed(encoder, batch, packed=False)
        packed, others = _timed(encoder, batch, packed=True)
    finally:
        encoder.packed = before
    cosines = torch.cosine_similarity(torch.from_numpy(vectors), torch.from_numpy(others))
    return Comparison(padded, packed, float(cosines.min()))


def _timed(encoder: TwoLayouts, batch: Tokenized, *, packed: bool) -> tuple[float, FloatArray]:
    encoder.packed = packed
    seconds = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        # Its vectors are on the host when it returns: no further wait for the device is needed.
        vectors = encoder.encode(batch, lambda _: None).vectors
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]), vectors


def _has_kernel(encoder: TwoLayouts, teacher: Teacher) -> bool:
    """Flash attention: half precision, heads at most 256 wide, an Ampere GPU or a later one."""
    if encoder.device.type != "cuda" or teacher.dtype == "float32":
        return False
    config = encoder.body.config
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return head_width <= 256 and torch.cuda.get_device_capability(encoder.device) >= (8, 0)
