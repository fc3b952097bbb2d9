"""Stage 1 without a transformer: heads trained on the pooled states that a cache keeps.

A teacher's body may be what the student starts as (stella is both). While that body is frozen, its
pooled states are the teacher's, and the cache may have kept them: the heads then train from the
disk alone. Whether the states are the student's own is asked of the records first and then of the
encoder, on a few rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from student.encoding import encode
from student.model import POOLED, create
from student.run import StageRun, start_of
from teacher_cache.format import Block
from teacher_cache.reader import CacheReader

Pooled = Literal["auto", "require", "off"]

SAMPLE = 16
TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""By the arithmetic of the teacher: how far, as a share of its length, a kept state may lie from
the encoder's in float32. Kept are float16: 3e-4. bf16 in the body of a deep model makes 2e-2."""


def prompts_of(block: Block) -> set[str]:
    """All that may stand before a text in a block: nothing, where no prompt is the default."""
    return {*block.prompts.values()} | ({""} if "default" not in block.prompts else set())


def why_not(run: StageRun, reader: CacheReader, start: str) -> str | None:
    """Why the kept states are not those of this stage's student, by the records; None if they are.

    No weight is loaded: `start` is the digest of what the stage starts from, as its facts have it.
    """
    kept = reader.manifest.pooled
    if kept is None:
        return "the cache keeps no pooled state"
    if not set(run.spec.trains) <= {"heads", "fc1", *run.student.reduced_heads}:
        return "the stage trains the body"
    if start_of(run) is not None:
        return "the stage starts from a trained student"
    if run.student.layers is not None:
        return f"the student keeps layers {list(run.student.layers)} of the body alone"
    (block,) = (block for block in reader.manifest.blocks if block.teacher == kept.teacher)
    if (prompts := prompts_of(block)) != {run.student.prompt}:
        found = ", ".join(map(repr, sorted(prompts)))
        return f"the student's prompt is {run.student.prompt!r}, {kept.teacher}'s {found}"
    if block.max_tokens != run.student.max_tokens:
        return (
            f"the student reads {run.student.max_tokens} tokens, {kept.teacher} {block.max_tokens}"
        )
    if start != kept.body:
        return f"the student's body is not {kept.teacher}'s: its files have another digest"
    return None


def sample_differs(
    run: StageRun, reader: CacheReader, init: Path, device: torch.device
) -> str | None:
    """Ask the encoder: why a sample's kept states are not what it computes; None if they are."""
    kept = reader.manifest.pooled
    assert kept is not None, "asked after `why_not`"
    (block,) = (block for block in reader.manifest.blocks if block.teacher == kept.teacher)
    rows = np.unique(np.linspace(0, len(reader.train_rows) - 1, SAMPLE).astype(np.int64))
    student = create(run.student, init, 1, run.seed).to(device)
    expected = encode(student, reader.texts(rows), ())[POOLED]
    found = reader.pooled(rows).astype(np.float32)
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    allowed = TOLERANCE[block.dtype]
    if float(errors.max()) <= allowed:
        return None
    worst = int(errors.argmax())
    return (
        f"the state of row {rows[worst]} is {errors[worst]:.1%} off what the encoder computes "
        f"({allowed:.1%} expected of {block.dtype})"
    )
