"""The text body of a student: any Hugging Face encoder, with the layers that are to stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from student.spec import StudentError

FIRST_TRANSFORMERS = "5.2"
"""The first release whose decoders heed `is_causal` in their configuration: with 5.1 a body that
should attend both ways attends to the left alone, and its vectors are up to 0.5 off."""


def configuration(folder: Path) -> Any:
    """The configuration of a text encoder, bidirectional whatever the folder says.

    Raises:
        StudentError: transformers cannot read it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StudentError(f"{folder} holds no text encoder: {_first_line(error)}") from error
    # Stella's body is a Qwen2 that attends both ways; its folder need not say so.
    config.is_causal = False
    config.use_cache = False
    return config


def load_body(folder: Path) -> nn.Module:
    """A Hugging Face text encoder, with its weights in fp32. No code of the folder is run.

    Raises:
        StudentError: transformers cannot read the folder, it has no safetensors, or they lack a
            tensor, which transformers would draw at random.
    """
    from transformers import AutoModel

    config = configuration(folder)
    try:
        body, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StudentError(f"{folder} holds no text encoder: {_first_line(error)}") from error
    # A pooler over the first token may be missing: the mean is pooled, the pooler never used.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise StudentError(
            f"the weights in {folder} lack {len(missing)} tensors, the first is {missing[0]}; "
            "fetch them again"
        )
    loaded: nn.Module = body
    return loaded


class Unloaded(nn.Module):
    """Stands where a body would, for heads that train on pooled states: it runs nothing."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def body_layers(body: nn.Module) -> nn.ModuleList:
    """The stack of layers of a body.

    Raises:
        StudentError: no one list of modules is as long as the configuration says.
    """
    return getattr(*_layers_place(body))  # type: ignore[no-any-return]


def is_decoder(body: nn.Module) -> bool:
    """Whether a body's kind attends to the left alone, unless its configuration says otherwise."""
    return any(getattr(module, "is_causal", None) is True for module in body.modules())


def most_positions(body: nn.Module) -> int | None:
    """The longest input that a body's learned position embeddings allow; None where it has none."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # RoBERTa's kind counts positions from behind the one that stands for padding.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None


def keep_layers(body: nn.Module, indices: Sequence[int]) -> None:
    """Keep the layers at these indices, in this order, and make the configuration agree.

    Raises:
        StudentError: an index is not there, or there is none.
    """
    owner, name = _layers_place(body)
    layers = getattr(owner, name)
    if not indices or any(not 0 <= i < len(layers) for i in indices):
        raise StudentError(
            f"student.layers is {list(indices)}, but the model has layers 0 to {len(layers) - 1}"
        )
    kept = [layers[i] for i in indices]
    setattr(owner, name, nn.ModuleList(kept))
    config: Any = body.config
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in indices]
    for position, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position


def _layers_place(body: nn.Module) -> tuple[nn.Module, str]:
    count: int = body.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    places = [
        (owner, name)
        for owner in body.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(places) != 1:
        raise StudentError(
            f"expected one stack of {count} layers in {type(body).__name__}, found {len(places)}"
        )
    return places[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
