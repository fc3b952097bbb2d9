"""Writers of small vision models and of a small Jasper, in the layouts of the released ones."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import STELLA, decoder_weights, stella_tokenizer, write_json, write_weights
from numpy.typing import NDArray
from PIL import Image

SIDE, PATCH = 12, 4
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.1,
}
PREPROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE, "width": SIDE},
}
TOKENS = ("<|jasper_img_start|>", "<|jasper_img_token|>", "<|jasper_img_end|>")
IMAGE_TOKENS = 5
WIDTHS = (40, 16, 10, 6)

Weights = dict[str, NDArray[np.float32]]


def siglip_weights(rng: np.random.Generator, *, head: bool = True) -> Weights:
    """The tensors of a SigLIP vision model, by their names without any prefix."""
    width, inner = int(SIGLIP["hidden_size"]), int(SIGLIP["intermediate_size"])

    def linear(name: str, out: int, inside: int) -> Weights:
        return {
            f"{name}.weight": (rng.normal(size=(out, inside)) / np.sqrt(inside)).astype(np.float32),
            f"{name}.bias": (0.3 * rng.normal(size=out)).astype(np.float32),
        }

    def norm(name: str) -> Weights:
        return {
            f"{name}.weight": (1 + 0.2 * rng.normal(size=width)).astype(np.float32),
            f"{name}.bias": (0.2 * rng.normal(size=width)).astype(np.float32),
        }

    patch = rng.normal(size=(width, 3, PATCH, PATCH)) / np.sqrt(3 * PATCH**2)
    weights: Weights = {
        "embeddings.patch_embedding.weight": patch.astype(np.float32),
        "embeddings.patch_embedding.bias": (0.2 * rng.normal(size=width)).astype(np.float32),
        "embeddings.position_embedding.weight": rng.normal(
            size=((SIDE // PATCH) ** 2, width)
        ).astype(np.float32),
    }
    for i in range(int(SIGLIP["num_hidden_layers"])):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= linear(f"{layer}.self_attn.{name}", width, width)
        weights |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
        weights |= linear(f"{layer}.mlp.fc1", inner, width)
        weights |= linear(f"{layer}.mlp.fc2", width, inner)
    weights |= norm("post_layernorm")
    if head:
        weights["head.probe"] = rng.normal(size=(1, 1, width)).astype(np.float32)
        attention = linear("head.attention.in_proj", 3 * width, width)
        weights["head.attention.in_proj_weight"] = attention["head.attention.in_proj.weight"]
        weights["head.attention.in_proj_bias"] = attention["head.attention.in_proj.bias"]
        weights |= linear("head.attention.out_proj", width, width) | norm("head.layernorm")
        weights |= linear("head.mlp.fc1", inner, width) | linear("head.mlp.fc2", width, inner)
    return weights


def write_siglip(
    folder: Path, *, prefix: str = "vision_model.", head: bool = True, whole: bool = False
) -> Path:
    """A folder of SigLIP: the vision model alone, or the `whole` with its text model's settings."""
    folder.mkdir(parents=True)
    weights = siglip_weights(np.random.default_rng(5), head=head)
    write_weights(folder, {prefix + name: value for name, value in weights.items()})
    inner = {key: value for key, value in SIGLIP.items() if key != "hidden_act"}
    config: dict[str, Any] = SIGLIP
    if whole:
        config = {"model_type": "siglip", "text_config": {}, "vision_config": inner}
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return folder


def write_jasper(folder: Path, *, bf16: bool = True, tokens: bool = True) -> Path:
    """A folder with the released checkpoint's keys and files; sizes in proportion."""
    folder.mkdir(parents=True)
    tokenizer = stella_tokenizer()
    if tokens:
        tokenizer.add_special_tokens(list(TOKENS))
    fields = {**STELLA, "vocab_size": tokenizer.get_vocab_size()}
    rng = np.random.default_rng(3)
    body = decoder_weights(rng, fields, attention_bias=True)
    weights = {"model." + name: value for name, value in body.items()}
    weights |= {"vision_model.vision_model." + n: v for n, v in siglip_weights(rng).items()}
    for width in WIDTHS:
        matrix = rng.normal(size=(width, int(fields["hidden_size"]))) / 7
        weights[f"vector_linear_{width}.weight"] = matrix.astype(np.float32)
        weights[f"vector_linear_{width}.bias"] = rng.normal(size=width).astype(np.float32) / 2
    if bf16:
        from safetensors.torch import save_file

        save_file(
            {name: torch.from_numpy(value).bfloat16() for name, value in weights.items()},
            folder / "model.safetensors",
        )
    else:
        write_weights(folder, weights)
    write_json(
        folder / "config.json",
        {
            **fields,
            "architectures": ["JasperVL"],
            "auto_map": {"AutoModel": "modeling_jasper_vl.JasperVL"},
            "num_img_tokens": IMAGE_TOKENS,
            "vector_dim": WIDTHS[1],
            "vector_dropout_p": 0.2,
            "torch_dtype": "bfloat16" if bf16 else "float32",
            "vision_config": SIGLIP,
        },
    )
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_eos_token": True}
    write_json(folder / "tokenizer_config.json", eos)
    return folder


def picture(seed: int, size: tuple[int, int] = (17, 9), kind: str = "PNG") -> bytes:
    """An encoded image of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return encoded(Image.fromarray(noise), kind)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
