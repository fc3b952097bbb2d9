"""The student: text body → masked mean → FC1 and the reduced heads (paper, section 2.2).

Shape suffixes: B texts, L tokens, H hidden width of the body, D width of a head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from student.body import Unloaded, body_layers, configuration, keep_layers, load_body
from student.spec import StudentError, StudentSpec
from student.stages import FULL_HEAD, StageError, head_of, width_of
from student.tokens import TextTokenizer
from teacher_cache.models import transformer_folder

SPEC_FILE = "student.json"
HEADS_FILE = "heads.safetensors"
TEXT_FOLDER = "text"

_LAYERS = re.compile(r"layers\[(-?\d*)(:)?(-?\d*)\]$")


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts, tokenised, in chunks of similar length so that little padding is computed.

    `chunks` are pairs of token ids and attention mask, both [b, L]; `order` [B] takes the
    chunks' rows, one after the other, back to the order of the texts.
    """

    chunks: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on a device."""
        chunks = tuple((ids.to(device), mask.to(device)) for ids, mask in self.chunks)
        return TextBatch(chunks, self.order.to(device))

    def apart(self) -> list[TextBatch]:
        """Each chunk as a batch of its own, its texts in the order of its rows."""
        return [
            TextBatch((chunk,), torch.arange(len(chunk[0]), device=self.order.device))
            for chunk in self.chunks
        ]


@dataclass(frozen=True, slots=True)
class PooledBatch:
    """Texts of which the pooled states [B, H] are known already: the body is not asked."""

    states: Tensor

    def to(self, device: torch.device) -> PooledBatch:
        """The same batch on a device."""
        return PooledBatch(self.states.to(device))


StudentBatch = TextBatch | PooledBatch


class Student(nn.Module):
    """A text body and its heads, with the tokenizer and the spec they belong to."""

    def __init__(
        self,
        text: nn.Module,
        head_widths: Mapping[str, int],
        tokenizer: TextTokenizer,
        spec: StudentSpec,
    ) -> None:
        super().__init__()
        self.text = text
        self.tokenizer = tokenizer
        self.spec = spec
        self.heads = nn.ModuleDict({n: nn.Linear(self.hidden, w) for n, w in head_widths.items()})
        for module in self.text.modules():
            # Targets are exact vectors: noise in the body only blurs what is to be matched.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]  # kept as a number

    @property
    def hidden(self) -> int:
        """The width of the pooled state."""
        return self.text.config.hidden_size  # type: ignore[union-attr, return-value]

    @property
    def head_widths(self) -> dict[str, int]:
        """The width of each head, FC1 first."""
        return {name: head.out_features for name, head in self.heads.items()}  # type: ignore[misc]

    def pooled(self, batch: StudentBatch) -> Tensor:
        """The masked mean of the body's last states [B, H], in fp32, in the order of the texts."""
        if isinstance(batch, PooledBatch):
            return batch.states.float()
        means = [self._mean(ids, mask) for ids, mask in batch.chunks]
        return torch.cat(means)[batch.order]

    def forward(
        self, batch: StudentBatch, heads: Sequence[str], keep_BH: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The raw vectors [B, D] of heads, or of their first columns (`fc1[:512]`), in fp32.

        `keep_BH` are factors of the pooled state: what a dropout leaves of it.
        """
        pooled_BH = self.pooled(batch)
        return self.project(pooled_BH if keep_BH is None else pooled_BH * keep_BH, heads)

    def project(self, pooled_BH: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
        """The vectors of heads, as `forward` gives them, from the pooled state.

        Heads stay out of autocast: bf16 has a step of 0.4 % where similarities lie, against a
        margin of 0.015.

        Raises:
            StageError: a head that is not there, or not as wide as asked.
        """
        entries = {entry: (head_of(entry)[0], width_of(entry, self.head_widths)) for entry in heads}
        with torch.autocast(pooled_BH.device.type, enabled=False):
            full = {
                head: self.heads[head](pooled_BH)
                for head in dict.fromkeys(head for head, _ in entries.values())
            }
        return {
            entry: full[head] if width == full[head].shape[1] else full[head][:, :width]
            for entry, (head, width) in entries.items()
        }

    def _mean(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        output: Any = self.text(input_ids=ids_BL, attention_mask=mask_BL)
        states_BLH: Tensor = output.last_hidden_state.float()
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        return (states_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)

    def batch(self, texts: Sequence[str], chunks: int = 4) -> TextBatch:
        """Tokenise texts, with the student's prompt, into at most so many chunks of like length."""
        ids = self.tokenizer.encode([self.spec.prompt + text for text in texts])
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = max(1, -(-len(order) // chunks))
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return TextBatch(
            tuple(_padded([ids[i] for i in part], self.tokenizer.pad_id) for part in parts),
            torch.tensor(order).argsort(),
        )

    def parameters_of(self, groups: Sequence[str]) -> dict[str, nn.Parameter]:
        """The parameters of the named groups, by their full names, in the model's order.

        Groups are `text`, `layers[i]`, `layers[a:b]`, `heads` and the heads' own names. A pooler
        over the first token, which some families have, belongs to none: the mean is pooled.

        Raises:
            StageError: a name that matches nothing.
        """
        chosen: set[int] = set()
        for group in groups:
            chosen |= {id(parameter) for parameter in self._group(group).parameters()}
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if id(parameter) in chosen and not name.startswith("text.pooler.")
        }

    def train_only(self, groups: Sequence[str]) -> dict[str, nn.Parameter]:
        """Freeze all but the named groups, and give their parameters as `parameters_of` does.

        What is frozen gets no gradient, and layers below the first that trains keep no graph.
        """
        trained = self.parameters_of(groups)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)
        return trained

    def layers_with_graph(self, trained: Mapping[str, nn.Parameter]) -> list[nn.Module]:
        """The body's layers that keep activations: all above what trains, itself included."""
        layers = list(body_layers(self.text))
        chosen = {id(parameter) for parameter in trained.values()}
        inside = [[id(p) in chosen for p in layer.parameters()] for layer in layers]
        if len([name for name in trained if name.startswith("text.")]) > sum(map(sum, inside)):
            return layers  # embeddings train too: the graph spans the whole stack
        first = next((i for i, trains in enumerate(inside) if any(trains)), len(layers))
        return layers[first:]

    def compute_layers_again(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Gradient checkpointing: keep the inputs of layers with a graph, not what lies inside.

        transformers' own switch makes the embeddings' output require a gradient, and so keeps a
        graph through frozen layers; this one leaves what is frozen alone, in any body.
        """
        for layer in self.layers_with_graph(trained):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _group(self, name: str) -> nn.Module:
        if name == "text":
            return self.text
        if name == "heads":
            return self.heads
        if name in self.heads:
            return self.heads[name]
        match = _LAYERS.match(name)
        layers = body_layers(self.text)
        if match:
            start, colon, stop = match.groups()
            if colon:
                chosen = list(layers)[slice(int(start or 0), int(stop) if stop else None)]
            elif start and -len(layers) <= int(start) < len(layers):
                chosen = [layers[int(start)]]
            else:
                chosen = []
            if chosen:
                return nn.ModuleList(chosen)
            raise StageError(f"{name} matches none of the student's {len(layers)} layers")
        raise StageError(
            f"there is no parameter group {name!r}; groups are text, layers[-3:] (or another "
            f"index or slice), heads, {', '.join(self.heads)}"
        )

    def save(self, folder: Path) -> None:
        """Write body, heads, tokenizer and spec, in safetensors and JSON."""
        self.text.save_pretrained(folder / TEXT_FOLDER)  # type: ignore[operator]
        self.tokenizer.save(folder / TEXT_FOLDER)
        heads = {name: value.contiguous() for name, value in self.heads.state_dict().items()}
        save_file(heads, folder / HEADS_FILE)
        facts = {"spec": self.spec.model_dump(mode="json"), "head_widths": self.head_widths}
        (folder / SPEC_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def create(
    spec: StudentSpec, folder: Path, target_width: int, seed: int, *, body: bool = True
) -> Student:
    """A new student from the model in `folder`: its body with the layers to keep, new heads.

    Without the body: the same heads, which `PooledBatch`es can be given to.

    Raises:
        StudentError: the folder holds no text encoder, or lacks a layer that is to be kept.
    """
    folder = transformer_folder(folder)
    text = load_body(folder) if body else Unloaded(configuration(folder))
    if body and spec.layers is not None:
        keep_layers(text, spec.layers)
    torch.manual_seed(seed)
    widths = {FULL_HEAD: target_width, **spec.reduced_heads}
    return Student(text, widths, TextTokenizer(folder, spec.max_tokens), spec)


def load(folder: Path) -> Student:
    """A student as `Student.save` wrote it.

    Raises:
        StudentError: the folder holds no saved student.
    """
    file = folder / SPEC_FILE
    if not file.is_file():
        raise StudentError(f"{folder} holds no student: expected {SPEC_FILE}")
    facts = json.loads(file.read_text())
    spec = StudentSpec.model_validate(facts["spec"])
    tokenizer = TextTokenizer(folder / TEXT_FOLDER, spec.max_tokens)
    student = Student(load_body(folder / TEXT_FOLDER), facts["head_widths"], tokenizer, spec)
    student.heads.load_state_dict(load_file(folder / HEADS_FILE))
    return student


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(1, max(map(len, rows)))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
