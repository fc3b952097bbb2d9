"""The student's vectors of texts, with those of the student it started as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from student.encoding import FloatArray, encode
from student.evaluation.task_spec import Embed
from student.model import Student
from student.spec import INIT, POOLED


def vectors_of(
    student: Student,
    untrained: Student | None,
    heads: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> Embed:
    """A function from texts to their vectors: `init`, `pooled` and each of the heads.

    Without the untrained student there is no `init`.
    """

    def embed(texts: Sequence[str], role: str) -> dict[str, FloatArray]:
        del role  # the student knows no queries and documents, only texts
        found = encode(student, texts, heads, advance=advance)
        if untrained is None:
            return found
        return {INIT: encode(untrained, texts, (), advance=advance)[POOLED], **found}

    return embed
