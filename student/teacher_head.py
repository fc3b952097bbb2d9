"""A teacher's own head in the folder of the student's body: Stella's `2_Dense_8192`.

Where the student begins as that teacher, the head maps the student's pooled state to the teacher's
vector, which is what that block of FC1 is to learn.

Shape suffixes: G pooled width and 1 for the bias, W width of a teacher's block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from student.stages import StageError
from teacher_cache.format import Block

Matrix = NDArray[np.float64]


def own_heads(init: Path, blocks: Sequence[Block]) -> dict[str, Path]:
    """By teacher: the file of the head in `init` that is as wide as the teacher's block.

    Raises:
        StageError: there is none.
    """
    files = {
        block.teacher: init / f"2_Dense_{block.width}" / "model.safetensors" for block in blocks
    }
    found = {teacher: file for teacher, file in files.items() if file.is_file()}
    if not found:
        looked = ", ".join(str(file.relative_to(init)) for file in files.values())
        raise StageError(
            f"there is no teacher's head to copy in {init} (looked for {looked}); "
            'begin with closed_form = { fc1 = "ridge" }'
        )
    return found


def read_head(file: Path, width: int, hidden: int) -> Matrix:
    """The head [W, G], bias last.

    Raises:
        StageError: the file cannot be read, or holds something else.
    """
    try:
        tensors: Mapping[str, torch.Tensor] = load_file(file)
        weight, bias = tensors["linear.weight"], tensors["linear.bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise StageError(f"{file} holds no head: {error}") from None
    if weight.shape != (width, hidden) or bias.shape != (width,):
        raise StageError(
            f"{file}: expected a head from {hidden} to {width}, found {tuple(weight.shape)}"
        )
    matrix: Matrix = torch.cat([weight, bias[:, None]], dim=1).double().numpy()
    return matrix
