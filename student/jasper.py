"""The layout of the released Jasper checkpoint, in and out: one folder, text and image side.

    model.*                          the text body, a Qwen2 that attends both ways
    vision_model.vision_model.*      a SigLIP with its pooling head, which nothing runs
    vector_linear_WIDTH.{weight,bias}  the heads, named by their widths

`config.json` has the body's fields, `vision_config`, `num_img_tokens` and `vector_dim`: the width
of the head that is used unless another is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.images import Preprocessing
from student.body import configuration, load_body
from student.spec import StudentError, VisionSpec
from student.vision import (
    PREPROCESSOR_FILE,
    Vision,
    build_vision,
    load_vision,
    read_tensors,
    siglip_config,
    vision_configuration,
)

if TYPE_CHECKING:
    from student.model import Student

BODY_PREFIX = "model."
VISION_PREFIX = "vision_model.vision_model."
HEAD_PREFIX = "vector_linear_"
ARCHITECTURE = "JasperVL"
DEFAULT_WIDTH = 1024

_OWN_FIELDS = ("vision_config", "num_img_tokens", "vector_dim", "architectures", "auto_map")


def is_jasper(folder: Path) -> bool:
    """Whether a folder's configuration is of the released checkpoint's kind. No weight is read."""
    path = folder / "config.json"
    return path.is_file() and "num_img_tokens" in _fields(folder)


def start_configuration(folder: Path) -> Any:
    """The configuration of a text body, in this layout or its model's own.

    It attends both ways whatever the folder says.

    Raises:
        StudentError: it is broken.
    """
    from transformers import Qwen2Config

    if not is_jasper(folder):
        return configuration(folder)
    fields = {k: v for k, v in _fields(folder).items() if k not in (*_OWN_FIELDS, "model_type")}
    config = Qwen2Config(**fields)
    config.is_causal = False
    config.use_cache = False
    return config


def start_body(folder: Path) -> nn.Module:
    """A text body, in this layout or its model's own, with its weights in fp32.

    No code of the folder is run.

    Raises:
        StudentError: a tensor is missing or has another shape.
    """
    from transformers import Qwen2Model

    if not is_jasper(folder):
        return load_body(folder)
    config = start_configuration(folder)
    with torch.device("meta"):
        body = Qwen2Model(config)
    tensors = _tensors(folder, BODY_PREFIX)
    expected = body.state_dict()
    missing = sorted(set(expected) - set(tensors))
    wrong = [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape]
    if missing or wrong:
        raise StudentError(
            f"the weights in {folder} lack {len(missing)} tensors and have {len(wrong)} of another "
            f"shape than its configuration says, the first is {BODY_PREFIX}{[*missing, *wrong][0]}"
        )
    body = Qwen2Model(config)
    body.load_state_dict({name: tensors[name].float() for name in expected})
    return body


def load_heads(folder: Path, heads: nn.ModuleDict) -> None:
    """Set heads to those of a folder in Jasper's layout, by width; others stay as they are."""
    if not is_jasper(folder):
        return
    found = _tensors(folder, HEAD_PREFIX)
    with torch.no_grad():
        for head in heads.values():
            width = head.out_features
            if f"{width}.weight" in found:
                head.weight.copy_(found[f"{width}.weight"])  # type: ignore[operator]
                head.bias.copy_(found[f"{width}.bias"])  # type: ignore[operator]


def head_widths(folder: Path) -> set[int]:
    """The widths of the heads that a folder in Jasper's layout has; none in any other."""
    if not is_jasper(folder):
        return set()
    names = {name for name in _tensors(folder, HEAD_PREFIX) if name.endswith(".weight")}
    return {int(name.removesuffix(".weight")) for name in names}


def load_image_side(folder: Path, hidden: int, spec: VisionSpec) -> Vision:
    """The image side of a folder: in Jasper's layout, or a SigLIP's own.

    Raises:
        StudentError: it holds none.
    """
    if not is_jasper(folder):
        return load_vision(folder, hidden, spec)
    config, prepared = image_side_settings(folder)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_tensors(path, prefixed=True)
    return build_vision(config, tensors, hidden, spec, prepared, str(folder))


def image_side_settings(folder: Path) -> tuple[Any, Preprocessing]:
    """The configuration of a folder's vision model, and how its images are prepared.

    Raises:
        StudentError: it holds none.
    """
    file = folder / PREPROCESSOR_FILE
    if not is_jasper(folder):
        return vision_configuration(folder), Preprocessing.of(file)
    fields = _fields(folder)
    if "vision_config" not in fields:
        raise StudentError(f"{folder / 'config.json'} has no vision_config")
    config = siglip_config(fields["vision_config"])
    # The release prepares its images as its SigLIP does.
    return config, Preprocessing.of(file) if file.is_file() else Preprocessing(config.image_size)


def write(
    student: Student,
    folder: Path,
    heads: Iterable[str],
    dtype: torch.dtype,
    used: str | None = None,
) -> None:
    """Write a student in this layout: weights in `dtype`, configuration, tokenizer, preprocessing.

    `used` is the head that is used unless another is asked for: without it that of the release's
    width, or the first where none is as wide.

    Raises:
        StudentError: the layout has no place for something that the student has, or the student
            lacks what the layout needs.
    """
    from transformers import Qwen2Model

    vision = student.vision
    if vision is None:
        raise StudentError("the layout has an image side, the student has none; train stage 4")
    if not isinstance(student.text, Qwen2Model):
        raise StudentError(f"the layout's body is a Qwen2, found {type(student.text).__name__}")
    for has, what in (
        (vision.spec.projection, "a projection of image tokens"),
        (student.spec.prompt, f"the prompt {student.spec.prompt!r}"),
    ):
        if has:
            raise StudentError(f"the layout has no place for {what}, which the student has")
    widths = {head: student.head_widths[head] for head in heads}
    if not widths or used not in (None, *widths):
        raise StudentError(
            "the layout has places for whole heads, not for first columns or the pooled state; the "
            f"student's trained heads: {', '.join(widths) or 'none'}"
        )
    if len(set(widths.values())) < len(widths):
        raise StudentError(f"the layout names heads by their widths, and two are alike: {widths}")
    tensors = {BODY_PREFIX + name: t for name, t in student.text.state_dict().items()}
    tensors |= {VISION_PREFIX + name: t for name, t in vision.encoder.state_dict().items()}
    for head, width in widths.items():
        for name, tensor in student.heads[head].state_dict().items():
            tensors[f"{HEAD_PREFIX}{width}.{name}"] = tensor
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    seen: Any = vision.encoder.config
    dtype_name = str(dtype).removeprefix("torch.")
    every = list(widths.values())
    usual = DEFAULT_WIDTH if DEFAULT_WIDTH in every else every[0]
    fields = {
        **student.text.config.to_dict(),
        "architectures": [ARCHITECTURE],
        "model_type": "qwen2",
        "torch_dtype": dtype_name,
        "num_img_tokens": vision.spec.image_tokens,
        "vector_dim": usual if used is None else widths[used],
        "vision_config": {**seen.to_dict(), "model_type": "siglip_vision_model"},
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    vision.preprocessing.save(folder / PREPROCESSOR_FILE)
    student.tokenizer.save(folder)


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"{path} cannot be read: {error}") from None
    return fields


def _tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name.startswith(prefix):
                        found[name.removeprefix(prefix)] = file.get_tensor(name)
        except SafetensorError as error:
            raise StudentError(f"{path} is damaged: {error}; fetch it again") from None
    return found
