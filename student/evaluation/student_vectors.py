"""The student's vectors of texts, with those of the student it started as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from student.encoding import FloatArray, encode
from student.evaluation.task_spec import Embed
from student.model import POOLED, Student

INIT = "init"
"""As a vector's name: the pooled state of the untrained student."""


def vectors_of(
    student: Student,
    untrained: Student,
    heads: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> Embed:
    """A function from texts to their vectors: `init`, `pooled` and each of the heads."""

    def embed(texts: Sequence[str], role: str) -> dict[str, FloatArray]:
        del role  # the student knows no queries and documents, only texts
        before = encode(untrained, texts, (), advance=advance)[POOLED]
        return {INIT: before, **encode(student, texts, heads, advance=advance)}

    return embed
