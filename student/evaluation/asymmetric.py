"""The student's queries against a teacher's vectors: an index that exists is searched as it is.

FC1 learns the teachers' concatenated vector, so its columns fall into one block per teacher: a
query's block can be searched for in the index of that teacher alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from teacher_cache.format import Block

if TYPE_CHECKING:
    from student.encoding import FloatArray
    from student.evaluation.retention import Geometry, Recall

ALL_TEACHERS = "all teachers"
"""As a teacher's name: all of them, one after the other."""


def spaces(blocks: Sequence[Block]) -> Mapping[str, slice]:
    """The columns of FC1 that speak each teacher's space, and all of them where there are several.

    `blocks` are the run's, in its order: they say how wide each teacher is.
    """
    columns = {}
    offset = 0
    for block in blocks:
        columns[block.teacher] = slice(offset, offset + block.width)
        offset += block.width
    return columns if len(columns) == 1 else {ALL_TEACHERS: slice(0, offset), **columns}


def found_by(queries: FloatArray, teacher: Geometry) -> Recall:
    """Of the teacher's own k neighbours of each row, those that the student's query finds.

    `queries` are unit rows [n, T], of the same texts as the teacher's; each is searched among the
    teacher's vectors of the others.
    """
    from student.evaluation.retention import AT, nearest, recall

    return recall(nearest(queries, teacher.rows, max(AT)), teacher.nearest)
