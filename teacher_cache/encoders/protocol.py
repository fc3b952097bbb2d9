"""What the build asks of a teacher, whatever its nature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer to one shard of texts, in the order they were given.

    `vectors` [n, width] are raw: the build normalises them and keeps their norms. `tokens` [n]
    counts what the teacher saw of each text, prompt and special tokens included. `pooled` [n, H]
    is the body's mean before any head, where it is kept.
    """

    vectors: FloatArray
    tokens: IntArray
    pooled: FloatArray | None = None


@runtime_checkable
class KeepsPooled(Protocol):
    """What an encoder offers that can give the pooled state of its body beside its vectors."""

    @property
    def pooled_width(self) -> int | None:
        """The width of the pooled state, None where it is not asked for."""
        ...


@runtime_checkable
class KnowsItsLimit(Protocol):
    """What an encoder offers that need not read as much of a text as its recipe allows, or reads
    more; all others cut where the recipe says."""

    @property
    def max_tokens(self) -> int | None:
        """The longest input that it reads, None where it cuts nothing."""
        ...


class Encoder(Protocol):
    """A loaded teacher.

    `prepare` is the part that needs no device (tokenisation): the build runs it for the next
    shard while `encode` is busy with this one. What it returns is handed to `encode` unseen.
    """

    @property
    def width(self) -> int:
        """The width of its vectors."""
        ...

    @property
    def pooling(self) -> str:
        """How token states become one vector, in words for the manifest."""
        ...

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Any:
        """Tokenise texts, each with the prompt put before it."""
        ...

    def encode(self, prepared: Any, on_done: Callable[[int], None]) -> Encoded:
        """Encode what `prepare` gave; `on_done` is told how many texts each batch finished."""
        ...
