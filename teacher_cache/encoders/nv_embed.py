"""NV-Embed-v2: a Mistral body made bidirectional, latent attention, mean over the text's tokens.

What goes in is instruction + text + `</s>` as one string; truncation cuts what lies at its end,
`</s>` first. The instruction is attended by every token and pooled by none: the mean leaves out
the first n positions, n being the number of tokens of the instruction by itself, `<s>` not
counted. That is the original's own measure, kept to the letter (see `EosWrittenTokenizer.count`).
Vectors are L2-normalised, in fp32.

The reference is the model's own `encode()`. The route through sentence-transformers strips the
text and shifts the instruction by one token, and is up to 0.12 away from it.

Shape suffixes: B texts, L tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import MistralConfig, MistralModel, PreTrainedModel

from teacher_cache.encoders import body as bodies
from teacher_cache.encoders.batching import Tokenized, encode_batches, token_budget_of
from teacher_cache.encoders.checkpoint import (
    Checkpoint,
    account,
    open_checkpoint,
    read_json,
    read_tensors,
)
from teacher_cache.encoders.latent_attention import LatentAttention, LatentSizes
from teacher_cache.encoders.layout import Batch, laid_out
from teacher_cache.encoders.protocol import Encoded, FloatArray, IntArray
from teacher_cache.encoders.tokens import TOKENIZER_FILE, EosWrittenTokenizer, check_vocabulary
from teacher_cache.teachers import Teacher, TeacherError

BODY_PREFIX = "embedding_model."
LATENT_PREFIX = "latent_attention_model."


def files(folder: Path, teacher: Teacher) -> list[Path]:
    """Every file this teacher is read from, after all that can be checked without its weights.

    Raises:
        TeacherError: the folder is of another architecture or width, a key or a shape differs, the
            tokenizer is not of this family, or a prompt alone fills the longest length.
    """
    return _inspect(folder, teacher).files


def load(
    folder: Path, teacher: Teacher, *, device: str, token_budget: int | None
) -> NvEmbedEncoder:
    """Load body, latent attention and tokenizer onto a device.

    Raises:
        TeacherError: as `files`.
    """
    found = _inspect(folder, teacher)
    where = torch.device(device)
    dtype: torch.dtype = getattr(torch, teacher.dtype)
    # The latents first: what is folded away needs memory that the body then takes.
    latents = dict(read_tensors(found.weights, LATENT_PREFIX, device=where, dtype=torch.float32))
    latent_attention = LatentAttention(latents, found.sizes, dtype)
    del latents
    body = bodies.fill(
        found.body, read_tensors(found.weights, BODY_PREFIX, device=where, dtype=dtype), where
    )
    return NvEmbedEncoder(body, latent_attention, found.tokenizer, teacher, where, token_budget)


class NvEmbedEncoder:
    """A loaded NV-Embed behind the encoder protocol."""

    pooling = "latent attention, mean of the tokens behind the instruction, L2"

    def __init__(
        self,
        body: PreTrainedModel,
        latent_attention: LatentAttention,
        tokenizer: EosWrittenTokenizer,
        teacher: Teacher,
        device: torch.device,
        token_budget: int | None,
    ) -> None:
        self.body = body
        self.latent_attention = latent_attention
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.device = device
        self.token_budget = token_budget_of(device, token_budget)
        self.packed = False
        self.width: int = body.config.hidden_size
        self._instruction_tokens = cache(tokenizer.count)

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Tokenized:
        """Tokenise instruction + text + `</s>`, cut at the longest length.

        An empty text is what the original makes of it: the mean of what stands around it, `<s>`
        and `</s>`.

        Raises:
            TeacherError: an instruction alone fills the longest length, so that nothing is pooled.
        """
        ids = self.tokenizer.ids([p + text for p, text in zip(prompts, texts, strict=True)])
        pooled_from = np.fromiter(map(self._instruction_tokens, prompts), np.int32, len(prompts))
        for prompt, row, start in zip(prompts, ids, pooled_from, strict=True):
            if len(row) <= start:
                raise _no_room(self.teacher, prompt, int(start))
        return Tokenized(ids, pooled_from)

    def encode(self, prepared: Tokenized, on_done: Callable[[int], None]) -> Encoded:
        """Vectors of unit length."""
        return encode_batches(
            prepared,
            self.forward,
            self.width,
            collate=self._collate,
            device=self.device,
            token_budget=self.token_budget,
            on_done=on_done,
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Vectors [B, H] of a batch, in fp32."""
        mean_BH = batch.mean(self.latent_attention(batch.states(self.body)))
        return torch.nn.functional.normalize(mean_BH, dim=-1)

    @torch.inference_mode()
    def token_states(self, ids: IntArray) -> FloatArray:
        """States [L, H] of one text's tokens, before pooling. Every token sees every other."""
        batch = self._collate([ids], np.zeros(1, np.int32)).to(self.device)
        return self.latent_attention(batch.states(self.body))[0].float().cpu().numpy()

    def _collate(self, rows: Sequence[IntArray], pooled_from: IntArray) -> Batch:
        return laid_out(rows, pooled_from, packed=self.packed, pad_id=self.tokenizer.eos_id)


@dataclass(frozen=True, slots=True)
class _Folder:
    body: PreTrainedModel
    sizes: LatentSizes
    weights: Checkpoint
    tokenizer: EosWrittenTokenizer
    files: list[Path]


def _inspect(folder: Path, teacher: Teacher) -> _Folder:
    path = folder / "config.json"
    fields = read_json(path, dict)
    text_fields, latent_fields = (
        fields.get(name) for name in ("text_config", "latent_attention_config")
    )
    if not isinstance(text_fields, dict) or not isinstance(latent_fields, dict):
        raise TeacherError(
            f"teacher {teacher.name!r}: {path} (model_type {fields.get('model_type')!r}) has no "
            "text_config and latent_attention_config; expected NV-Embed-v2's"
        )
    if not str(text_fields.get("model_type")).endswith("mistral"):
        raise TeacherError(
            f"teacher {teacher.name!r}: the text_config of {path} is of model_type "
            f"{text_fields.get('model_type')!r}; NV-Embed-v2's body is a Mistral"
        )
    # The original ignores the window, and its model_type names a class of its own.
    stock = {**text_fields, "model_type": "mistral", "sliding_window": None}
    body = bodies.empty_body(MistralModel, MistralConfig, stock, str(path))
    hidden: int = body.config.hidden_size
    if teacher.width not in (None, hidden):
        raise TeacherError(
            f"teacher {teacher.name!r} should give vectors {teacher.width} wide, {path} says "
            f"{hidden}: this model has no other width"
        )
    sizes = LatentSizes.from_config(latent_fields, hidden, str(path))
    weights = open_checkpoint(folder)
    latent_shapes = {LATENT_PREFIX + key: shape for key, shape in sizes.shapes().items()}
    account(weights, bodies.expected_shapes(body, BODY_PREFIX) | latent_shapes)
    tokenizer = EosWrittenTokenizer(folder, teacher.max_tokens)
    check_vocabulary(folder, body.config.vocab_size)
    for prompt in teacher.prompts.values():
        count = tokenizer.count(prompt)
        if teacher.max_tokens is not None and teacher.max_tokens <= count:
            raise _no_room(teacher, prompt, count)
    return _Folder(body, sizes, weights, tokenizer, [path, folder / TOKENIZER_FILE, *weights.files])


def _no_room(teacher: Teacher, prompt: str, count: int) -> TeacherError:
    return TeacherError(
        f"teacher {teacher.name!r}: the instruction {prompt[:60]!r} alone takes {count} of "
        f"{teacher.max_tokens} tokens and is not pooled, so nothing of a text would be; raise "
        "max_tokens or shorten the prompt"
    )
