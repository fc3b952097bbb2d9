"""A student's text side as an ONNX graph: token ids and mask in, unit-length vectors out.

One output a head, named as the head; batch and length are free. The graph is computed by
onnxruntime beside the student before anyone may have it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.export.names import plain_name
from student.model import Student
from student.spec import POOLED, StudentError

MODEL_FILE = "model.onnx"
TOLERANCE = 1e-4
"""Largest difference of an element from the student's own: fp32 alone gives about 3e-7."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_ONE_FILE = 2**31
"""Bytes that an ONNX file can hold; a larger model has its weights beside it."""

_BATCHES = (
    ("the river in the morning", "a", "seven clocks and an empty house, after a long winter"),
    ("one",),
    tuple("a longer text says more than a short one " * n for n in (1, 9, 2, 4, 3)),
)
"""Texts of unlike lengths in batches of unlike sizes; the graph is traced with the first."""


def require(head: str) -> None:
    """Refuse what cannot be done before anything is written.

    Raises:
        StudentError: the extra is not installed, or the pooled state is asked for.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise StudentError(
            f"--onnx needs {', '.join(missing)}, which is not installed: "
            "pip install 'jasper-distill[onnx]'"
        )
    if head == POOLED:
        raise StudentError("ONNX gives the vectors of heads; export a head, not the pooled state")


class _Vectors(nn.Module):
    """What the graph computes."""

    def __init__(self, student: Student, heads: Sequence[str]) -> None:
        super().__init__()
        self.student = student
        self.heads = heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        found = self.student.project(self.student.mean(input_ids, attention_mask), self.heads)
        return tuple(F.normalize(found[head]) for head in self.heads)


def write(student: Student, folder: Path, heads: Sequence[str]) -> str:
    """Write `model.onnx` with these heads, and say how far its vectors are from the student's.

    Raises:
        StudentError: the graph cannot be made, or gives other vectors.
    """
    model = _Vectors(student, heads).eval()
    folder.mkdir()
    path = folder / MODEL_FILE
    try:
        _trace(model, path)
        furthest = _compare(model, path)
    except Exception as error:  # exporter and runtime raise whatever a body leads them to
        raise StudentError(
            f"no ONNX graph of a {type(student.text).__name__}: {_first_line(error)}; export "
            "without --onnx"
        ) from error
    if not furthest <= TOLERANCE:
        raise StudentError(
            f"the ONNX graph's vectors are up to {furthest:.2g} from the student's, at most "
            f"{TOLERANCE:g} is allowed; export without --onnx"
        )
    return f"ONNX: within {furthest:.2g} of the student's own vectors"


def _trace(model: _Vectors, path: Path) -> None:
    from torch.export import Dim

    student = model.student
    free = {0: Dim("batch"), 1: Dim("length", max=student.spec.max_tokens)}
    size = sum(value.numel() * value.element_size() for value in student.state_dict().values())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own making
            program = torch.onnx.export(
                model,
                _chunk(student, _BATCHES[0]),
                input_names=["input_ids", "attention_mask"],
                output_names=[plain_name(head) for head in model.heads],
                dynamic_shapes=(free, free),
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None, "only the old exporter gives none"
    program.save(path, external_data=size > 0.9 * _ONE_FILE)


def _compare(model: _Vectors, path: Path) -> float:
    """The largest difference of an element, over batches of several sizes and lengths."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    furthest = 0.0
    for texts in _BATCHES:
        ids, mask = _chunk(model.student, texts)
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = model(ids, mask)
        for one, two in zip(found, expected, strict=True):
            furthest = max(furthest, float(np.abs(one - two.numpy()).max()))
    return furthest


def _chunk(student: Student, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    return student.batch(texts, chunks=1).chunks[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
