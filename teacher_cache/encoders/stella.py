"""stella_en_1.5B_v5: a Qwen2 body made bidirectional, masked mean, one Dense head of many.

The folder is a sentence-transformers one, read without that library: modules.json must say
Transformer, Pooling (mean), Dense. The Dense folders `2_Dense_{width}` are independent matrices, so
the asked width names its own; modules.json points at another (1024), and the older `2_Dense` has
other weights.

Precision: the body runs in the teacher's dtype; the mean and the Dense layer run in fp32, the
Dense with its weights as stored. That is less than 1e-3 of the arithmetic, and rounds once where
the original in bf16 rounds three times. fp16 is refused: the activations overflow to NaN.

A text is tokenised as it stands (prompt + text), and every token is pooled, the prompt's too.

Shape suffixes: B texts, L tokens, H hidden width, T width of the vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model

from teacher_cache.encoders import body as bodies
from teacher_cache.encoders.batching import Tokenized, encode_batches, token_budget_of
from teacher_cache.encoders.checkpoint import (
    Checkpoint,
    account,
    open_checkpoint,
    read_json,
    read_tensors,
)
from teacher_cache.encoders.layout import Batch, laid_out
from teacher_cache.encoders.protocol import Encoded, FloatArray, IntArray
from teacher_cache.encoders.tokens import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    EosKeptTokenizer,
    check_vocabulary,
)
from teacher_cache.teachers import Teacher, TeacherError

PREFIX = "model."
"""Before every key of the body: the folder was saved as a `Qwen2ForCausalLM`."""

_POOLING = "1_Pooling/config.json"
_MODULES = ["Transformer", "Pooling", "Dense"]


def files(folder: Path, teacher: Teacher) -> list[Path]:
    """Every file this teacher is read from, after all that can be checked without its weights.

    Raises:
        TeacherError: fp16 is asked for, the folder is of another architecture or pools otherwise,
            the Dense head of the asked width is not there (those that are, are named), a key or a
            shape differs, or the tokenizer lacks the end-of-text token it is asked for.
    """
    return _inspect(folder, teacher).files


def load(folder: Path, teacher: Teacher, *, device: str, token_budget: int | None) -> StellaEncoder:
    """Load body, head and tokenizer onto a device.

    Raises:
        TeacherError: as `files`.
    """
    found = _inspect(folder, teacher)
    where = torch.device(device)
    dtype: torch.dtype = getattr(torch, teacher.dtype)
    body = bodies.fill(
        found.body, read_tensors(found.weights, PREFIX, device=where, dtype=dtype), where
    )
    dense = dict(read_tensors(found.dense, "linear.", device=where, dtype=torch.float32))
    return StellaEncoder(
        body, dense["weight"], dense["bias"], found.tokenizer, where, token_budget,
        keep_pooled=teacher.keep_pooled,
    )  # fmt: skip


class StellaEncoder:
    """A loaded Stella behind the encoder protocol."""

    def __init__(
        self,
        body: PreTrainedModel,
        dense_TH: torch.Tensor,
        bias_T: torch.Tensor,
        tokenizer: EosKeptTokenizer,
        device: torch.device,
        token_budget: int | None,
        *,
        keep_pooled: bool = False,
    ) -> None:
        self.body = body
        self.dense_TH, self.bias_T = dense_TH, bias_T
        self.tokenizer = tokenizer
        self.device = device
        self.token_budget = token_budget_of(device, token_budget)
        self.packed = False
        self.width = len(bias_T)
        self.pooled_width: int | None = dense_TH.shape[1] if keep_pooled else None
        self.pooling = "mean of all tokens, then Dense in fp32; texts end " + (
            "without an end-of-text token" if tokenizer.eos_id is None else "in one"
        )

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Tokenized:
        """Tokenise prompt + text, cut at the longest length, the end-of-text token kept.

        Raises:
            TeacherError: a text has no token, and therefore no mean.
        """
        inputs = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        ids = self.tokenizer.ids(inputs)
        for place, row in enumerate(ids):
            if not len(row):
                raise TeacherError(
                    f"text {place} of {len(ids)} ({inputs[place][:40]!r}) has no token and "
                    "therefore no mean: this tokenizer appends no end-of-text token; drop empty "
                    "texts from the corpus"
                )
        return Tokenized(ids, np.zeros(len(ids), np.int32))

    def encode(self, prepared: Tokenized, on_done: Callable[[int], None]) -> Encoded:
        """Vectors as the Dense layer gives them, not normalised."""
        return encode_batches(
            prepared,
            self.forward,
            self.width,
            collate=self._collate,
            device=self.device,
            token_budget=self.token_budget,
            on_done=on_done,
            pooled_width=self.pooled_width,
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Vectors [B, T] of a batch, in fp32; with pooled states kept, [B, T + H]."""
        pooled_BH = batch.mean(batch.states(self.body))
        vectors_BT = torch.nn.functional.linear(pooled_BH, self.dense_TH, self.bias_T)
        if self.pooled_width is None:
            return vectors_BT
        return torch.cat([vectors_BT, pooled_BH], dim=1)

    @torch.inference_mode()
    def token_states(self, ids: IntArray) -> FloatArray:
        """States [L, H] of one text's tokens, before pooling. Every token sees every other."""
        batch = self._collate([ids], np.zeros(1, np.int32)).to(self.device)
        return batch.states(self.body)[0].float().cpu().numpy()

    def _collate(self, rows: Sequence[IntArray], pooled_from: IntArray) -> Batch:
        return laid_out(rows, pooled_from, packed=self.packed, pad_id=self.tokenizer.pad_id)


@dataclass(frozen=True, slots=True)
class _Folder:
    body: PreTrainedModel
    weights: Checkpoint
    dense: Checkpoint
    tokenizer: EosKeptTokenizer
    files: list[Path]


def _inspect(folder: Path, teacher: Teacher) -> _Folder:
    if teacher.dtype == "float16":
        raise TeacherError(
            f"teacher {teacher.name!r}: Stella's activations overflow in float16 and its vectors "
            "become NaN; use bfloat16 or float32"
        )
    config_path = folder / "config.json"
    fields = read_json(config_path, dict)
    if fields.get("model_type") != "qwen2":
        raise TeacherError(
            f"teacher {teacher.name!r}: {config_path} is of model_type "
            f"{fields.get('model_type')!r}; Stella's is 'qwen2'"
        )
    body = bodies.empty_body(
        Qwen2Model, Qwen2Config, {**fields, "use_sliding_window": False}, str(config_path)
    )
    _check_modules(folder)
    dense, dense_config = _dense_head(folder, teacher, body.config.hidden_size)
    weights = open_checkpoint(folder)
    account(weights, bodies.expected_shapes(body, PREFIX))
    tokenizer = EosKeptTokenizer(folder, teacher.max_tokens)
    check_vocabulary(folder, body.config.vocab_size)
    read = [folder / name for name in ("config.json", "modules.json", _POOLING)]
    read += [folder / TOKENIZER_FILE, folder / CONFIG_FILE, dense_config]
    return _Folder(body, weights, dense, tokenizer, [*read, *dense.files, *weights.files])


def _check_modules(folder: Path) -> None:
    path = folder / "modules.json"
    kinds = [str(module.get("type")).rpartition(".")[2] for module in read_json(path, list)]
    if kinds != _MODULES:
        raise TeacherError(f"{path}: expected the modules {_MODULES}, found {kinds}")
    path = folder / _POOLING
    fields = read_json(path, dict)
    # Two ways of writing it: one flag for each mode, or their names.
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens")
        for key, value in fields.items()
        if key.startswith("pooling_mode_") and value
    }
    named = fields.get("pooling_mode", [])
    modes |= {named} if isinstance(named, str) else set(named)
    if modes != {"mean"} or not fields.get("include_prompt", True):
        raise TeacherError(
            f"{path}: expected mean pooling over all tokens, found {sorted(modes)} with "
            f"include_prompt {fields.get('include_prompt', True)}"
        )


def _dense_head(folder: Path, teacher: Teacher, hidden: int) -> tuple[Checkpoint, Path]:
    width = teacher.width
    head = folder / f"2_Dense_{width}"
    if width is None or not head.is_dir():
        there = sorted(
            int(match[1])
            for path in folder.iterdir()
            if (match := re.fullmatch(r"2_Dense_(\d+)", path.name))
        )
        raise TeacherError(
            f"teacher {teacher.name!r}: {folder} has no Dense head of width {width}; `width` can "
            f"be {', '.join(map(str, there)) or 'nothing: it has no numbered 2_Dense folder'}"
        )
    fields = read_json(head / "config.json", dict)
    expected = {"in_features": hidden, "out_features": width, "bias": True}
    found = {name: fields.get(name) for name in expected}
    activation = str(fields.get("activation_function"))
    if found != expected or not activation.endswith("Identity") or fields.get("use_residual"):
        raise TeacherError(
            f"{head / 'config.json'}: expected {expected} and no activation, found {fields}"
        )
    dense = open_checkpoint(head)
    account(dense, {"linear.weight": (width, hidden), "linear.bias": (width,)})
    return dense, head / "config.json"
