"""The released Jasper checkpoint, or a folder in its layout, as a student."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from student.jasper import head_widths, load_image_side
from student.model import Student, create
from student.spec import StudentError, StudentSpec, VisionSpec
from student.stages import FULL_HEAD
from student.tokens import CONFIG_FILE

PAPER_MAX_TOKENS = 512


def released_heads(folder: Path) -> dict[str, int]:
    """The widths of a folder's heads, which are named fc1, fc2, … from the widest on.

    Raises:
        StudentError: the folder is a model of another kind.
    """
    widths = sorted(head_widths(folder), reverse=True)
    if not widths:
        raise StudentError(
            f"{folder} holds a model, but neither a student nor one in the layout of the released "
            "Jasper checkpoint; expected a run, a stage of it, or its model"
        )
    return {f"fc{number}": width for number, width in enumerate(widths, 1)}


def load_released(folder: Path) -> Student:
    """A student with both its sides, in fp32.

    Its longest input is the tokenizer's, but not more than the 512 tokens of its training.

    Raises:
        StudentError: a tensor, the tokenizer or the image side is missing or has another shape.
    """
    widths = released_heads(folder)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spec = StudentSpec(
        init=str(folder),
        reduced_heads={head: width for head, width in widths.items() if head != FULL_HEAD},
        max_tokens=_max_tokens(folder),
    )
    with torch.random.fork_rng(devices=()):
        student = create(spec, folder, widths[FULL_HEAD], seed=0)
    vision = VisionSpec(image_tokens=int(facts["num_img_tokens"]))
    student.add_vision(load_image_side(folder, student.hidden, vision))
    return student


def _max_tokens(folder: Path) -> int:
    path = folder / CONFIG_FILE
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return int(min(facts.get("model_max_length") or PAPER_MAX_TOKENS, PAPER_MAX_TOKENS))
