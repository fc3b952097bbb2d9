"""Any sentence-transformers folder as a teacher, through the library that defines the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from teacher_cache.encoders.batching import Tokenized, encode_batches, token_budget_of
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.teachers import Teacher, TeacherError

if TYPE_CHECKING:
    from teacher_cache.encoders.layout import Padded

_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}
_OTHER_FORMATS = {"onnx", "openvino"}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "sentencepiece.")


def files(folder: Path, teacher: Teacher) -> list[Path]:
    """Weights, configuration and tokenizer of a sentence-transformers folder.

    Raises:
        TeacherError: it has no modules.json, no safetensors or no tokenizer.
    """
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES
        and path.is_file()
        and not _OTHER_FORMATS & set(path.relative_to(folder).parts)
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
    if not any(path.name.startswith(_TOKENIZERS) for path in found):
        # Without one the library makes up a tokenizer that knows no word.
        raise TeacherError(f"teacher {teacher.name!r}: {folder} has no tokenizer")
    return found


def load(
    folder: Path, teacher: Teacher, *, device: str, token_budget: int | None
) -> SentenceTransformerEncoder:
    """Load the folder in the teacher's dtype. No code of the folder is run.

    Raises:
        TeacherError: the libraries cannot load it, or the weights lack a tensor.
    """
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, teacher.dtype), "use_safetensors": True},
        )
        missing = _missing_tensors(model)
    except Exception as error:  # several libraries read the folder, each with errors of its own
        raise TeacherError(
            f"teacher {teacher.name!r}: {folder} cannot be loaded on {device}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if missing:
        raise TeacherError(
            f"teacher {teacher.name!r}: the weights in {folder} lack {len(missing)} tensors, the "
            f"first is {missing[0]}; fetch them again"
        )
    return SentenceTransformerEncoder(model.eval(), teacher, token_budget)


def _missing_tensors(model: Any) -> list[str]:
    """The tensors of the transformer that its files lack: transformers draws them at random.

    BERT's own pooler may be missing: sentence-transformers does not use it.
    """
    body = getattr(model[0], "auto_model", None)
    if body is None:
        return []
    _, report = type(body).from_pretrained(
        body.name_or_path,
        output_loading_info=True,
        local_files_only=True,
        use_safetensors=True,
        device_map="meta",  # the names alone: no weight is read a second time
    )
    return sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))


class SentenceTransformerEncoder:
    """A sentence-transformers model behind the encoder protocol.

    The library tokenises and computes; sorting and batching are ours, so that padding costs
    little and the memory of every batch is the same.
    """

    def __init__(self, model: Any, teacher: Teacher, token_budget: int | None) -> None:
        self.model = model
        self.teacher = teacher
        self.device = torch.device(model.device)
        self.token_budget = token_budget_of(self.device, token_budget)
        self.width: int = model.get_embedding_dimension()
        limits = [n for n in (teacher.max_tokens, model.max_seq_length) if n is not None]
        self.max_tokens = min(limits, default=None)
        pooling = [module for module in model if hasattr(module, "pooling_mode")]
        self.pooled_width = _pooled_width(model, teacher) if teacher.keep_pooled else None
        self.pooling = ", ".join(str(module.pooling_mode) for module in pooling) or "model's own"
        if any(teacher.prompts.values()) and any(not m.include_prompt for m in pooling):
            raise TeacherError(
                f"teacher {teacher.name!r}: its pooling leaves prompts out (include_prompt is "
                "false), which the generic encoder does not do; give empty prompts"
            )

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Tokenized:
        """Tokenise as the library does: prompt and text as they are, cut at the longest length."""
        tokenizer = self.model.tokenizer
        inputs = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
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
        from teacher_cache.encoders.layout import Padded

        tokenizer = self.model.tokenizer
        return encode_batches(
            prepared,
            self._forward,
            self.width,
            collate=partial(
                Padded.of,
                pad_id=tokenizer.pad_token_id,
                pad_left=tokenizer.padding_side == "left",
            ),
            device=self.device,
            token_budget=self.token_budget,
            on_done=on_done,
            pooled_width=self.pooled_width,
        )

    @torch.inference_mode()
    def _forward(self, batch: Padded) -> torch.Tensor:
        features = {"input_ids": batch.ids_BL, "attention_mask": batch.mask_BL}
        if self.pooled_width is None:
            vectors: torch.Tensor = self.model(features)["sentence_embedding"]
            return vectors
        found = []
        for module in self.model:
            features = module(features)
            found.append(features.get("sentence_embedding"))
        # The second module pools, the last gives the vector.
        return torch.cat([found[-1], found[1]], dim=1)


def _pooled_width(model: Any, teacher: Teacher) -> int:
    modes = [getattr(module, "pooling_mode", None) for module in model]
    if len(modes) < 2 or modes[1] != "mean":
        raise TeacherError(
            f"teacher {teacher.name!r}: keep_pooled needs a body and then mean pooling, which is "
            f"what a student has; its second module pools by {modes[1:2]}"
        )
    return int(model[1].get_embedding_dimension())
