"""A student in the released Jasper checkpoint's layout, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from student.durable import refuse_full, whole_folder
from student.export.card import jasper_card
from student.export.past import Past
from student.jasper import write
from student.model import Student


def export_jasper(
    student: Student,
    out: Path,
    *,
    dtype: str,
    head: str | None = None,
    record: Mapping[str, Any],
    past: Past | None = None,
) -> None:
    """Write all trained heads, text and image side in the released checkpoint's layout.

    `head` is the one that is used unless another is asked for; without it the release's choice.
    `record` and `past` are those of `student.export.folder.export`.

    Raises:
        StudentError: the layout cannot hold the student or use the head, or `out` exists and is not
            empty.
    """
    refuse_full(out)
    heads = [head for head in student.heads if head in record["trained_heads"]]
    with whole_folder(out) as folder:
        write(student, folder, heads, getattr(torch, dtype), head)
        card = jasper_card(student, heads, record, past or Past())
        (folder / "README.md").write_text(card, encoding="utf-8")
