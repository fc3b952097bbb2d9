"""The image side of a student: pixels → SigLIP → adaptive average pooling → image tokens.

The tokens take the places of `image_tokens` special tokens, between a start and an end token, in
what the text body reads; from there an image goes the way of a text.

Shape suffixes: K images, C channels of colour, S side in pixels, P patches, V width of SigLIP,
N image tokens, H hidden width of the text body.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.images import Preprocessing
from student.spec import FreshVision, StudentError, VisionSpec

START_TOKEN = "<|jasper_img_start|>"
IMAGE_TOKEN = "<|jasper_img_token|>"
END_TOKEN = "<|jasper_img_end|>"
IMAGE_TOKENS = (START_TOKEN, IMAGE_TOKEN, END_TOKEN)
"""In the order of their ids, which follow the vocabulary's."""

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
POOLER_FILE = "pooler.safetensors"

UNUSED = "vision.encoder.head."
"""SigLIP's own pooling head: it came with the model and leaves with it, nothing runs it."""

_ARCHITECTURES = ("siglip", "siglip_vision_model")
_PREFIX = "vision_model."


class Vision(nn.Module):
    """A SigLIP vision model and the pooler that makes image tokens of its states."""

    def __init__(
        self, encoder: nn.Module, hidden: int, spec: VisionSpec, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.spec = spec
        self.hidden = hidden
        self.preprocessing = preprocessing
        self.pooler: nn.Module = nn.Identity()
        if spec.projection:
            self.pooler = nn.Linear(hidden, hidden)
            nn.init.eye_(self.pooler.weight)
            nn.init.zeros_(self.pooler.bias)
        config: Any = encoder.config
        if config.image_size != preprocessing.side:
            raise StudentError(
                f"the vision model reads images of {config.image_size} pixels a side, its "
                f"{PREPROCESSOR_FILE} makes them {preprocessing.side}"
            )

    def forward(self, pixels_KCSS: Tensor) -> Tensor:
        """The image tokens [K, N, H] of images given as bytes, 0 to 255."""
        states_KPV: Tensor = self.encoder(self.normalised(pixels_KCSS)).last_hidden_state
        tokens_KNH = F.adaptive_avg_pool2d(
            states_KPV.unsqueeze(1), (self.spec.image_tokens, self.hidden)
        ).squeeze(1)
        projected_KNH: Tensor = self.pooler(tokens_KNH)
        return projected_KNH

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the vision model."""
        return list(self.encoder.encoder.layers)  # type: ignore[union-attr, arg-type]

    def normalised(self, pixels_KCSS: Tensor) -> Tensor:
        """Pixels as the vision model was trained on them: rescaled, then standardised."""
        as_read = self.preprocessing
        mean, std = (
            torch.tensor(values, device=pixels_KCSS.device).view(1, 3, 1, 1)
            for values in (as_read.mean, as_read.std)
        )
        return (pixels_KCSS.float() * as_read.rescale - mean) / std

    def save(self, folder: Path) -> None:
        """Write configuration, weights, preprocessing, and the pooler's projection if any."""
        folder.mkdir(parents=True)
        config: Any = self.encoder.config
        (folder / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        weights = {
            _PREFIX + name: value.contiguous() for name, value in self.encoder.state_dict().items()
        }
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        self.preprocessing.save(folder / PREPROCESSOR_FILE)
        if self.spec.projection:
            save_file(self.pooler.state_dict(), folder / POOLER_FILE)


def fresh_vision(sizes: FreshVision, hidden: int, spec: VisionSpec, seed: int) -> Vision:
    """An image side with random weights."""
    from transformers import SiglipVisionModel

    config = fresh_configuration(sizes)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        encoder = SiglipVisionModel(config)
    return Vision(encoder, hidden, spec, Preprocessing(sizes.side))


def fresh_configuration(sizes: FreshVision) -> Any:
    """The configuration of a SigLIP of these sizes; its pooling head, never run, is left out."""
    return siglip_config(
        {
            "image_size": sizes.side,
            "patch_size": sizes.patch,
            "hidden_size": sizes.width,
            "intermediate_size": 4 * sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "vision_use_head": False,
        }
    )


def load_vision(folder: Path, hidden: int, spec: VisionSpec) -> Vision:
    """The image side from a folder of SigLIP: a vision model, or one with its text model.

    A folder that `Vision.save` wrote gives its pooler's projection too. No code of it is run.

    Raises:
        StudentError: another architecture, a broken configuration, or weights that lack a tensor.
    """
    config = vision_configuration(folder)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != POOLER_FILE:
            tensors |= read_tensors(path, prefixed=False)
    vision = build_vision(
        config, tensors, hidden, spec, Preprocessing.of(folder / PREPROCESSOR_FILE), str(folder)
    )
    if spec.projection and (folder / POOLER_FILE).is_file():
        vision.pooler.load_state_dict(load_file(folder / POOLER_FILE))
    return vision


def build_vision(
    config: Any,
    tensors: dict[str, Tensor],
    hidden: int,
    spec: VisionSpec,
    preprocessing: Preprocessing,
    where: str,
) -> Vision:
    """The image side from a configuration and its tensors, named without any prefix.

    Raises:
        StudentError: a tensor is missing or has another shape.
    """
    from transformers import SiglipVisionModel

    with torch.device("meta"):
        encoder = SiglipVisionModel(config)
    expected = encoder.state_dict()
    # The pooling head is never run: a model that was saved without it is whole.
    needed = [name for name in expected if not name.startswith("head.")]
    missing = sorted(set(needed) - set(tensors))
    if missing:
        raise StudentError(
            f"the weights in {where} lack {len(missing)} tensors of the vision model, the first is "
            f"{missing[0]}; fetch them again"
        )
    for name in needed:
        if tensors[name].shape != expected[name].shape:
            raise StudentError(
                f"{where}: {name} has the shape {tuple(tensors[name].shape)}, its configuration "
                f"asks for {tuple(expected[name].shape)}"
            )
    if not set(expected) <= set(tensors):
        config.vision_use_head = False
        with torch.device("meta"):
            encoder = SiglipVisionModel(config)
    whole = {name: tensors[name].float() for name in encoder.state_dict()}
    with torch.no_grad():
        encoder = encoder.to_empty(device="cpu")
        encoder.load_state_dict(whole)
        positions = encoder.embeddings.position_ids  # a buffer that no file holds
        positions.copy_(torch.arange(positions.numel()).view_as(positions))
    for module in encoder.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]  # kept as a number
    return Vision(encoder, hidden, spec, preprocessing)


def vision_configuration(folder: Path) -> Any:
    """The configuration of a folder's SigLIP vision model.

    Raises:
        StudentError: there is none, or the folder holds another architecture.
    """
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"{folder} holds no vision model: {path} ({error})") from None
    kind = fields.get("model_type")
    if kind not in _ARCHITECTURES:
        raise StudentError(
            f"{folder} holds a model of type {kind!r}; the image side is a SigLIP "
            f"({' or '.join(_ARCHITECTURES)})"
        )
    return siglip_config(fields["vision_config"] if kind == "siglip" else fields)


def siglip_config(fields: dict[str, Any]) -> Any:
    """A SigLIP vision configuration from its fields, without dropout."""
    from transformers import SiglipVisionConfig

    plain = {key: value for key, value in fields.items() if key not in ("model_type", "dtype")}
    return SiglipVisionConfig(**{**plain, "attention_dropout": 0.0})


def read_tensors(path: Path, *, prefixed: bool) -> dict[str, Tensor]:
    """The tensors of a vision model in a file, by their names without `vision_model.`.

    Libraries have written that prefix twice, once, and not at all. With `prefixed`, tensors
    without it belong to something else and are left alone.

    Raises:
        StudentError: the file is damaged.
    """
    found = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                bare = name
                while bare.startswith(_PREFIX):
                    bare = bare.removeprefix(_PREFIX)
                if not prefixed or bare != name:
                    found[bare] = file.get_tensor(name)
    except SafetensorError as error:
        raise StudentError(f"{path} is damaged: {error}; fetch it again") from None
    return found
