"""Small random checkpoints with the real models' key names, files and layout.

Sizes are all different, so that a transposed or swapped matrix does not fit by chance; rope bases
and epsilons are the real models', which are not the library's defaults for both.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# Matrices this small are computed faster than a second thread is woken; where other processes hold
# the cores, waiting for it is most of a test.
torch.set_num_threads(1)

Weights = dict[str, NDArray[np.float32]]

CORPUS = [
    "Instruct: Given a question, retrieve passages that answer the question Query: hello world",
    "the quiet engine of the harbour turned over seven times before the morning bell",
    "which bridges did she cross, and how often did the river rise in that winter?",
]

EOS_STELLA = "<|endoftext|>"


def stella_tokenizer(*, appends_eos: bool = False) -> Tokenizer:
    """Byte-level BPE as Qwen2's, special tokens last, no end-of-text token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([EOS_STELLA, "<|im_start|>", "<|im_end|>"])
    byte_level = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = byte_level
    if appends_eos:
        eos = processors.TemplateProcessing(
            single=f"$A {EOS_STELLA}",
            special_tokens=[(EOS_STELLA, tokenizer.token_to_id(EOS_STELLA))],
        )
        tokenizer.post_processor = processors.Sequence([byte_level, eos])
    return tokenizer


def mistral_tokenizer_json(*, eos: str = "</s>", bos_prepended: bool = True) -> dict[str, Any]:
    """A Llama-style tokenizer.json: `▁` for spaces and before every text, bytes for the unknown."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", eos, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    special = [
        {"id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for id_, token in enumerate(tokens[:3])
    ]
    template: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if bos_prepended:
        template.insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    return {
        "version": "1.0",
        # Stored states of another use, which must not shape what is read.
        "truncation": {
            "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0,
        },
        "padding": {
            "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None,
            "pad_id": 2, "pad_type_id": 0, "pad_token": eos,
        },
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": model["merges"],
        },
    }  # fmt: skip


STELLA = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "max_window_layers": 1,
    "use_sliding_window": False,
    "sliding_window": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}

NV_TEXT = {
    "_name_or_path": "hub/of-another-model",
    "architectures": ["MistralModel"],
    "model_type": "bidir_mistral",
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "sliding_window": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    # What older libraries wrote into a nested configuration.
    "max_length": 20,
    "top_k": 50,
    "pruned_heads": {},
    "return_dict": True,
    "torchscript": False,
}

NV_LATENT = {
    "model_type": "latent_attention",
    "num_latents_value": 12,
    "num_cross_heads": 3,
    "cross_dim_head": 20,
    "latent_dim": 32,
    "hidden_dim": 32,
    "mult": 4,
}


def write_stella(
    folder: Path,
    *,
    widths: tuple[int, ...] = (16, 40),
    add_eos_token: bool | None = True,
    appends_eos: bool = False,
    shards: int = 1,
    **config: Any,
) -> Path:
    """A folder as stella_en_1.5B_v5's. `add_eos_token` None leaves the flag out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = stella_tokenizer(appends_eos=appends_eos)
    fields = {**STELLA, "vocab_size": tokenizer.get_vocab_size(), **config}
    rng = np.random.default_rng(0)
    weights = {
        "model." + key: value
        for key, value in decoder_weights(rng, fields, attention_bias=True).items()
    }
    write_weights(folder, weights, shards)
    hidden = fields["hidden_size"]
    # An older head with other weights, and one the folder points at by default: neither is asked.
    for name, width in [("2_Dense", widths[-1]), *((f"2_Dense_{w}", w) for w in widths)]:
        (folder / name).mkdir(exist_ok=True)
        dense = {
            "linear.weight": _matrix(rng, width, hidden),
            "linear.bias": _vector(rng, width),
        }
        save_file(dense, folder / name / "model.safetensors")
        write_json(
            folder / name / "config.json",
            {"in_features": hidden, "out_features": width, "bias": True}
            | {"activation_function": "torch.nn.modules.linear.Identity"},
        )
    kinds = {"": "Transformer", "1_Pooling": "Pooling", f"2_Dense_{widths[0]}": "Dense"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"cls_token": False, "mean_tokens": True, "max_tokens": False}
    write_json(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": hidden}
        | {f"pooling_mode_{mode}": on for mode, on in pooling.items()},
    )
    write_json(folder / "config.json", fields)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(folder / "tokenizer.json"))
    flag = {} if add_eos_token is None else {"add_eos_token": add_eos_token}
    write_json(folder / "tokenizer_config.json", {"eos_token": EOS_STELLA, **flag})
    return folder


def write_nv_embed(
    folder: Path,
    *,
    shards: int = 1,
    eos: str = "</s>",
    bos_prepended: bool = True,
    latent: dict[str, Any] | None = None,
    **text_config: Any,
) -> Path:
    """A folder as NV-Embed-v2's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = mistral_tokenizer_json(eos=eos, bos_prepended=bos_prepended)
    write_json(folder / "tokenizer.json", tokenizer)
    text = {**NV_TEXT, "vocab_size": len(tokenizer["model"]["vocab"]), **text_config}
    rng = np.random.default_rng(1)
    body = decoder_weights(rng, text, attention_bias=False)
    weights = {"embedding_model." + key: value for key, value in body.items()}
    weights |= {"latent_attention_model." + key: v for key, v in _latent_attention(rng).items()}
    write_weights(folder, weights, shards)
    write_json(
        folder / "config.json",
        {
            "architectures": ["NVEmbedModel"],
            "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
            "model_type": "nvembed",
            "add_eos": True,
            "mask_type": "b",
            "padding_side": "right",
            "text_config": text,
            "latent_attention_config": {**NV_LATENT, **(latent or {})},
        },
    )
    return folder


def write_weights(folder: Path, weights: Weights, shards: int = 1) -> None:
    """One `model.safetensors`, or numbered shards and their index."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    keys = sorted(weights)
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in keys[i::shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def read_weights(folder: Path) -> Weights:
    """Every tensor of a folder, shards merged."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON object; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in data.items() if value is not None})


def decoder_weights(
    rng: np.random.Generator, fields: dict[str, Any], attention_bias: bool
) -> Weights:
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    kv = hidden // fields["num_attention_heads"] * fields["num_key_value_heads"]
    weights: Weights = {
        "embed_tokens.weight": rng.normal(size=(fields["vocab_size"], hidden)).astype(np.float32),
        "norm.weight": 1 + 0.3 * _vector(rng, hidden),
    }
    for i in range(fields["num_hidden_layers"]):
        layer = f"layers.{i}."
        for name, width in (("q", hidden), ("k", kv), ("v", kv)):
            weights[f"{layer}self_attn.{name}_proj.weight"] = _matrix(rng, width, hidden)
            if attention_bias:
                weights[f"{layer}self_attn.{name}_proj.bias"] = _vector(rng, width)
        weights[f"{layer}self_attn.o_proj.weight"] = _matrix(rng, hidden, hidden)
        for name in ("gate", "up"):
            weights[f"{layer}mlp.{name}_proj.weight"] = _matrix(rng, inner, hidden)
        weights[f"{layer}mlp.down_proj.weight"] = _matrix(rng, hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{name}.weight"] = 1 + 0.3 * _vector(rng, hidden)
    return weights


def _latent_attention(rng: np.random.Generator) -> Weights:
    wide = 32
    inner, gated = 3 * 20, 4 * wide
    attend, feed = "cross_attend_blocks.0.", "cross_attend_blocks.1."
    weights: Weights = {"latents": rng.normal(size=(12, wide)).astype(np.float32)}
    for norm in (f"{attend}norm", f"{attend}norm_context", f"{feed}norm"):
        weights[f"{norm}.weight"] = 1 + 0.3 * _vector(rng, wide)
        weights[f"{norm}.bias"] = _vector(rng, wide)
    weights[f"{attend}fn.to_q.weight"] = 2 * _matrix(rng, inner, wide)
    weights[f"{attend}fn.to_kv.weight"] = _matrix(rng, 2 * inner, wide)
    weights[f"{attend}fn.to_out.weight"] = _matrix(rng, wide, inner)
    weights[f"{feed}fn.net.0.weight"] = _matrix(rng, 2 * gated, wide)
    weights[f"{feed}fn.net.0.bias"] = _vector(rng, 2 * gated)
    weights[f"{feed}fn.net.2.weight"] = _matrix(rng, wide, gated)
    weights[f"{feed}fn.net.2.bias"] = _vector(rng, wide)
    return weights


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)


def _vector(rng: np.random.Generator, width: int) -> NDArray[np.float32]:
    return (0.5 * rng.normal(size=width)).astype(np.float32)
