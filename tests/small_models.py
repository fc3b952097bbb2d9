"""Writers of small real models: the layout of published ones, random weights, no network.

The vocabulary is written out and the weights are drawn from a seed, so that every run of the tests
has the same models. Weights are drawn wider than a model's usual start: attention, positions and
padding then show in the vectors.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel

WEIGHTS = "model.safetensors"
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORDS = "the of and to in is was for with that she he from river house letter winter engine"
VOCABULARY = [
    *SPECIAL.values(),
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
    *".,:;?!'-",
    *_WORDS.split(),
]


def write_encoder(
    folder: Path, *, layers: int = 3, hidden: int = 32, seed: int = 0, max_tokens: int = 48
) -> Path:
    """A BERT as a sentence-transformers folder: transformer, mean pooling, normalisation.

    `max_tokens` is the longest input of the folder; the model itself has 64 positions.
    """
    write_body(folder, layers=layers, hidden=hidden, seed=seed)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    for place in kinds:
        (folder / place).mkdir(exist_ok=True)
    package = "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"{package}.{kind}"}
        for i, (place, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def write_body(folder: Path, *, layers: int = 3, hidden: int = 32, seed: int = 0) -> Path:
    """A BERT that AutoModel and AutoTokenizer load: configuration, weights, tokenizer."""
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> Tokenizer:
    """WordPiece in lower case, `[CLS] … [SEP]`; unknown characters become `[UNK]`."""
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **SPECIAL},
    )
    return tokenizer


def change_weights(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    """Change one tensor of a folder's weights in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
