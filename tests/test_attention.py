from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_vision import IMAGE_TOKENS, SIDE, write_siglip
from torch import Tensor
from torch.overrides import TorchFunctionMode

from student.attention import attend_in_fp32
from student.body import load_body
from student.jasper import load_image_side
from student.model import Student, create
from student.spec import StudentSpec, VisionSpec

TEXTS = ["one", "two and three", "a longer one, of more words than the others"]


class Attention(TorchFunctionMode):
    """Notes in which dtypes torch is asked to attend."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.dtypes |= {tensor.dtype for tensor in args[:3]}
        return function(*args, **(kwargs or {}))


@pytest.fixture
def student(small_encoder: Path) -> Student:
    return create(StudentSpec(init="-", max_tokens=24), small_encoder, 32, seed=0)


def pooled(student: Student) -> tuple[Tensor, set[torch.dtype]]:
    with Attention() as attention, torch.autocast("cpu", dtype=torch.bfloat16):
        found = student.pooled(student.batch(TEXTS, chunks=2))
    return found, attention.dtypes


def test_attention_alone_is_computed_in_fp32(student: Student) -> None:
    exact = student.pooled(student.batch(TEXTS, chunks=2)).detach()
    usual, dtypes = pooled(student)
    assert dtypes == {torch.bfloat16}
    attend_in_fp32(student.text)
    found, dtypes = pooled(student)
    assert dtypes == {torch.float32}
    # The products around it are rounded as before, so nothing is exact, nor further off.
    assert 0 < (found - exact).abs().max() <= 1.5 * (usual - exact).abs().max()
    found.square().sum().backward()
    layers = [p.grad for n, p in student.text.named_parameters() if "layer." in n]
    assert all(gradient is not None and gradient.any() for gradient in layers)


def test_a_vision_model_attends_in_fp32_too(tmp_path: Path) -> None:
    vision = load_image_side(
        write_siglip(tmp_path / "siglip"), 24, VisionSpec(image_tokens=IMAGE_TOKENS)
    )
    pixels = torch.rand(2, 3, SIDE, SIDE) * 255
    for dtype in (torch.bfloat16, torch.float32):
        with Attention() as attention, torch.autocast("cpu", dtype=torch.bfloat16):
            vision(pixels)
        assert attention.dtypes == {dtype}
        attend_in_fp32(vision.encoder)


@torch.inference_mode()
def test_without_autocast_nothing_changes(student: Student) -> None:
    before = student.pooled(student.batch(TEXTS))
    attend_in_fp32(student.text)
    assert (student.pooled(student.batch(TEXTS)) == before).all()


def test_a_saved_body_knows_nothing_of_it(small_encoder: Path, tmp_path: Path) -> None:
    body = load_body(small_encoder)
    attend_in_fp32(body)
    body.save_pretrained(tmp_path)
    assert "sdpa" not in (tmp_path / "config.json").read_text()
    load_body(tmp_path)
