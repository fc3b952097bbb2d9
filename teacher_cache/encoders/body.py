"""A stock decoder read as a bidirectional encoder: built empty, filled once, run under a mask.

Shape suffixes: B texts, L tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from teacher_cache.encoders.checkpoint import Shape
from teacher_cache.teachers import TeacherError


def empty_body(
    model_class: Any, config_class: Any, fields: Mapping[str, Any], where: str
) -> PreTrainedModel:
    """The stock model that `fields` of a config.json describe, without memory for its weights.

    Raises:
        TeacherError: the fields are not a configuration of this class; `where` names the file.
    """
    try:
        config = config_class.from_dict(dict(fields))
        # Never the folder's word for it: a missing flag means causal, and no warning tells.
        config.is_causal = False
        config.use_cache = False
        with torch.device("meta"):
            body = model_class(config)
    except Exception as error:  # the strict configuration classes raise from several hierarchies
        reason = " ".join(str(error).split())
        raise TeacherError(
            f"{where} does not describe a {model_class.__name__}: {reason}"
        ) from error
    ready: PreTrainedModel = body.eval().requires_grad_(False)
    return ready


def expected_shapes(module: torch.nn.Module, prefix: str) -> dict[str, Shape]:
    """Every key that fills `module`, as its checkpoint names it, with its shape."""
    return {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}


def fill(
    body: PreTrainedModel, tensors: Iterator[tuple[str, torch.Tensor]], device: torch.device
) -> PreTrainedModel:
    """Give an empty body its weights. They are taken over, not copied."""
    body.load_state_dict(dict(tensors), strict=True, assign=True)
    # Not in any checkpoint. Always computed on the CPU and in fp32, so that no device and no dtype
    # gives other rotations.
    rotary: Any = body.rotary_emb
    body.rotary_emb = type(rotary)(config=body.config).to(device)
    return body.requires_grad_(False)


def use_attention(body: PreTrainedModel, name: str) -> None:
    """Let the body's layers attend by one of transformers' attention functions."""
    body.config._attn_implementation = name


def token_states(
    body: PreTrainedModel, ids_BL: torch.Tensor, mask_BL: torch.Tensor
) -> torch.Tensor:
    """The body's last states [B, L, H]; every token sees every token of its own text.

    The mask is handed over in four dimensions, [B, 1, 1, L]: the library then takes it as it is,
    whatever its defaults on causality or sliding windows, and never asks the device whether a
    batch happens to be without padding, which would stall a GPU once a batch.
    """
    states_BLH: torch.Tensor = body(
        input_ids=ids_BL, attention_mask=mask_BL.bool()[:, None, None, :]
    ).last_hidden_state
    return states_BLH


def masked_mean(states_BLH: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Mean state [B, H] over the tokens where the mask is not 0, in fp32 whatever the states'."""
    weights_BL1 = mask_BL.float()[:, :, None]
    return (states_BLH.float() * weights_BL1).sum(1) / weights_BL1.sum(1)
