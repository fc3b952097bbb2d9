"""What a loaded teacher must prove before a build spends hours on it.

A decoder loaded as its library's default is causal and says nothing; a mask that is ignored, a mean
that takes the padding in, a batch whose vectors return in another order all give vectors that look
like any others. Each is told apart here on the loaded weights, in the build's dtype, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from teacher_cache.encoders.batching import Tokenized
from teacher_cache.encoders.protocol import Encoded, Encoder, FloatArray, IntArray
from teacher_cache.teachers import Teacher, TeacherError

MIN_COSINE = 0.9999
"""Between a text's vectors in two batches. bf16 is held to it from `_AVERAGED` pooled tokens on."""

_MAX_NORM_RATIO = 1.01

_AVERAGED = 64
"""Batches of other shapes take other kernels, and in bf16 their roundings differ from the first
layer on. What reaches the vector falls with the tokens that the mean averages over: on a random
body of Stella's full size 1 - cos was 2e-4 at 2 tokens, 6e-5 at 8, 3e-5 at 16, 7e-6 at 64; on
all-MiniLM-L6-v2 8e-5 at 3 and 3e-5 at 34. A shorter text is allowed as many times more as it has
fewer tokens; what the check is for moves it by more than 1e-2."""

_RESOLUTION = 1e-6
"""Smallest relative move of a state that counts: under it fp32 itself is the reason."""

_WORDS = (
    "harbour lantern seven copper valley quiet engine morning letter bridge winter orange window "
    "river paper stone garden thunder market silver forest needle compass island marble feather "
    "station whisper velvet canyon bottle mirror"
)
TEXTS = (
    "hello",
    "Which bridges of Königsberg did Euler cross, and how often?",
    _WORDS,
    ", ".join(f"{word} {number}" for number, word in enumerate(_WORDS.split() * 2)),
)
"""One word, a question, and two that are long enough to be padded against."""


@runtime_checkable
class SeesBothWays(Protocol):
    """What an encoder offers to claim that every token of a text sees every other.

    An encoder without it (one that has no tokens, or a model that is causal by design) is not asked
    about its attention.
    """

    def token_states(self, ids: IntArray) -> FloatArray:
        """States [L, H] of one text's tokens, given by their ids [L], before pooling."""
        ...


def probe(encoder: Encoder, teacher: Teacher) -> None:
    """Check on the loaded weights what every vector of the build will rely on.

    Vectors are as wide as the encoder and the teacher say, and finite; a change of a text's last
    token moves the state of its first (for encoders that claim it, see `SeesBothWays`); a text's
    vector is the same alone, in a padded batch, and with the texts in another order. Texts carry
    the teacher's prompts in turn, so that each is tried.

    Raises:
        TeacherError: naming what failed, with the number that was found.
    """
    prompts = sorted(set(teacher.prompts.values())) or [""]
    count = max(len(TEXTS), len(prompts))
    texts = [TEXTS[i % len(TEXTS)] for i in range(count)]
    fed = [prompts[i % len(prompts)] for i in range(count)]
    prepared = encoder.prepare(texts, fed)
    together = encoder.encode(prepared, _ignore)
    _check_width(encoder, teacher, together)
    if isinstance(encoder, SeesBothWays) and isinstance(prepared, Tokenized):
        _check_attention(encoder, teacher, prepared)
    _check_batches(encoder, teacher, texts, fed, together, _pooled(prepared, together))


def _check_width(encoder: Encoder, teacher: Teacher, encoded: Encoded) -> None:
    widths = {encoder.width, encoded.vectors.shape[1], teacher.width or encoder.width}
    if len(widths) > 1:
        raise _failure(
            teacher,
            f"it should give vectors {teacher.width} wide, says {encoder.width} and gives "
            f"{encoded.vectors.shape[1]}",
        )
    if not np.isfinite(encoded.vectors).all():
        raise _failure(teacher, f"its vectors in {teacher.dtype} are not finite; use another dtype")
    if teacher.keep_pooled and encoded.pooled is None:
        raise _failure(teacher, "its pooled state is to be kept, but it gave none")


def _check_attention(encoder: SeesBothWays, teacher: Teacher, prepared: Tokenized) -> None:
    # A short text: each of its tokens weighs most there. Two are needed.
    ids = min((row for row in prepared.ids if len(row) > 1), key=len, default=None)
    if ids is None:
        return
    first = encoder.token_states(ids)[0]
    # The same input twice says how far an equal state may lie: not at all, on most devices. Inputs
    # of one shape take the same kernels, so a causal body gives its first token no move either.
    noise = _move(first, encoder.token_states(ids)[0])
    others = np.unique(np.concatenate(prepared.ids))
    moves = []
    for other in others[others != ids[-1]][:3]:
        changed = ids.copy()
        changed[-1] = other
        moves.append(_move(first, encoder.token_states(changed)[0]))
    if not max(moves) > max(8 * noise, _RESOLUTION):
        raise _failure(
            teacher,
            "its attention is causal: changing the last token of a text moves the state of the "
            f"first by {max(moves):.1e} of its length (equal inputs: {noise:.1e})",
        )


def _check_batches(
    encoder: Encoder,
    teacher: Teacher,
    texts: Sequence[str],
    prompts: Sequence[str],
    together: Encoded,
    pooled: IntArray,
) -> None:
    turned = encoder.encode(encoder.prepare(texts[::-1], prompts[::-1]), _ignore).vectors[::-1]
    for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone = encoder.encode(encoder.prepare([text], [prompt]), _ignore).vectors[0]
        lowest = MIN_COSINE
        if teacher.dtype == "bfloat16":
            lowest = 1 - (1 - MIN_COSINE) * max(1.0, _AVERAGED / max(int(pooled[place]), 1))
        for vector, what in (
            (alone, "alone and in a padded batch"),
            (turned[place], "with the texts of a batch in another order"),
        ):
            cosine, ratio = _compare(together.vectors[place], vector)
            if not (cosine >= lowest and ratio <= _MAX_NORM_RATIO):
                raise _failure(
                    teacher,
                    f"the vectors of one text {what} differ: cosine {cosine:.6f} (at least "
                    f"{lowest:.6f}), lengths by {ratio - 1:.1%}, in {teacher.dtype}, text "
                    f"{text[:30]!r}",
                )


def _pooled(prepared: Any, encoded: Encoded) -> IntArray:
    if isinstance(prepared, Tokenized):
        return prepared.lengths - prepared.pooled_from
    return encoded.tokens


def _move(before: FloatArray, after: FloatArray) -> float:
    length = float(np.linalg.norm(before))
    return float(np.linalg.norm(after - before)) / (length or 1.0)


def _compare(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """Cosine of two vectors, and the longer over the shorter. Two zeros are equal."""
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(lengths) == 0:
        return (1.0, 1.0) if max(lengths) == 0 else (0.0, float("inf"))
    cosine = float(np.dot(a.astype(np.float64), b.astype(np.float64)))
    return cosine / (lengths[0] * lengths[1]), max(lengths) / min(lengths)


def _ignore(_texts_done: int) -> None:
    pass


def _failure(teacher: Teacher, reason: str) -> TeacherError:
    return TeacherError(
        f"teacher {teacher.name!r} failed the check before the build, nothing was written: {reason}"
    )
