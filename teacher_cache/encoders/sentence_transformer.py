"""Any sentence-transformers folder as a teacher, through the library that defines the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher_cache.encoders.batching import DEFAULT_TOKEN_BUDGET, Tokenized, encode_batches
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.teachers import Teacher, TeacherError

_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}


def files(folder: Path, teacher: Teacher) -> list[Path]:
    """Weights, configuration and tokenizer of a sentence-transformers folder.

    Raises:
        TeacherError: it has no modules.json or no safetensors.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES and not {"onnx", "openvino"} & set(path.parts)
    ]
    if folder / "modules.json" not in found:
        raise TeacherError(
            f"teacher {teacher.name!r}: {folder} has no modules.json; "
            "expected a sentence-transformers folder"
        )
    if not any(path.suffix == ".safetensors" for path in found):
        raise TeacherError(
            f"teacher {teacher.name!r}: {folder} has no weights (*.safetensors; pickled weights "
            "are not read)"
        )
    return found


def load(
    folder: Path, teacher: Teacher, *, device: str, token_budget: int | None
) -> SentenceTransformerEncoder:
    """Load the folder in the teacher's dtype. No code of the folder is run."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device=device,
        local_files_only=True,
        model_kwargs={"dtype": getattr(torch, teacher.dtype), "use_safetensors": True},
    )
    return SentenceTransformerEncoder(model.eval(), teacher, token_budget)


class SentenceTransformerEncoder:
    """A sentence-transformers model behind the encoder protocol.

    The library tokenises and computes; sorting and batching are ours, so that padding costs
    little and the memory of every batch is the same.
    """

    def __init__(self, model: Any, teacher: Teacher, token_budget: int | None) -> None:
        self.model = model
        self.teacher = teacher
        self.device = torch.device(model.device)
        self.token_budget = token_budget or DEFAULT_TOKEN_BUDGET[self.device.type]
        self.width: int = model.get_embedding_dimension()
        limits = [n for n in (teacher.max_tokens, model.max_seq_length) if n is not None]
        self.max_tokens = min(limits, default=None)
        pooling = [module for module in model if hasattr(module, "pooling_mode")]
        self.pooling = ", ".join(str(module.pooling_mode) for module in pooling) or "model's own"
        if any(teacher.prompts.values()) and any(not m.include_prompt for m in pooling):
            raise TeacherError(
                f"teacher {teacher.name!r}: its pooling leaves prompts out (include_prompt is "
                "false), which the generic encoder does not do; give empty prompts"
            )

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Tokenized:
        """Tokenise as the library does: outer white space stripped, cut at the longest length."""
        tokenizer = self.model.tokenizer
        inputs = [prompt + text.strip() for prompt, text in zip(prompts, texts, strict=True)]
        ids = tokenizer(
            inputs,
            truncation=self.max_tokens is not None,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        rows = [np.asarray(row, np.int32) for row in ids]
        return Tokenized(rows, np.zeros(len(rows), np.int32))

    def encode(self, prepared: Tokenized, on_done: Callable[[int], None]) -> Encoded:
        """Vectors as the model's last module gives them."""
        tokenizer = self.model.tokenizer
        return encode_batches(
            prepared,
            self._forward,
            self.width,
            pad_id=tokenizer.pad_token_id,
            pad_left=tokenizer.padding_side == "left",
            device=self.device,
            token_budget=self.token_budget,
            on_done=on_done,
        )

    @torch.inference_mode()
    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, _pooled_from: torch.Tensor
    ) -> torch.Tensor:
        vectors: torch.Tensor = self.model({"input_ids": ids, "attention_mask": mask})[
            "sentence_embedding"
        ]
        return vectors
