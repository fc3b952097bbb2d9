"""The student: text body → masked mean → FC1 and the reduced heads (paper, section 2.2).

An image is a row of the text body too: tokens that `student.vision` makes of it, between two more.

Shape suffixes: B texts, L tokens, H hidden width of the body, D width of a head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from student.body import Unloaded, body_layers, keep_layers
from student.cuts import cheapest_parts
from student.inputs import Images, PooledBatch, StudentBatch, TextBatch, images_of, padded
from student.jasper import load_heads, start_body, start_configuration
from student.spec import POOLED as POOLED
from student.spec import SPEC_FILE, StudentError, StudentSpec
from student.stages import FULL_HEAD, StageError, head_of, width_of
from student.tokens import TextTokenizer
from student.vision import IMAGE_TOKENS, UNUSED, Vision, load_vision
from teacher_cache.models import transformer_folder

HEADS_FILE = "heads.safetensors"
TEXT_FOLDER = "text"
VISION_FOLDER = "vision"

CHUNKS = 6
"""Chunks of a batch: a tenth more tokens than unpadded, where one would have three times as many
(definitions, sentences and paragraphs mixed)."""

_LAYERS = re.compile(r"layers\[(?:(-?\d+)|(-?\d+)?:(-?\d+)?)\]$")


class Student(nn.Module):
    """A text body and its heads, with the tokenizer and the spec they belong to.

    `vision` is its image side, None for a student that reads texts alone.
    """

    def __init__(
        self,
        text: nn.Module,
        head_widths: Mapping[str, int],
        tokenizer: TextTokenizer,
        spec: StudentSpec,
    ) -> None:
        super().__init__()
        self.text = text
        self.vision: Vision | None = None
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
        images = batch.images or (None,) * len(batch.chunks)
        means = [
            self.mean(ids, mask, found)
            for (ids, mask), found in zip(batch.chunks, images, strict=True)
        ]
        return torch.cat(means)[batch.order]

    def forward(
        self, batch: StudentBatch, heads: Sequence[str], keep_BH: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The raw vectors [B, D] of heads, or of their first columns (`fc1[:512]`), in fp32.

        `pooled` among the heads is the pooled state itself.

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
        asked = [entry for entry in heads if entry != POOLED]
        entries = {entry: (head_of(entry)[0], width_of(entry, self.head_widths)) for entry in asked}
        with torch.autocast(pooled_BH.device.type, enabled=False):
            full = {
                head: self.heads[head](pooled_BH)
                for head in dict.fromkeys(head for head, _ in entries.values())
            }
        whole = {POOLED: pooled_BH} if len(asked) < len(heads) else {}
        return whole | {
            entry: full[head] if width == full[head].shape[1] else full[head][:, :width]
            for entry, (head, width) in entries.items()
        }

    def mean(self, ids_BL: Tensor, mask_BL: Tensor, images: Images | None = None) -> Tensor:
        """The pooled states [B, H] of one chunk of rows."""
        output: Any
        if images is None:
            output = self.text(input_ids=ids_BL, attention_mask=mask_BL)
        else:
            output = self.text(
                inputs_embeds=self._with_images(ids_BL, images), attention_mask=mask_BL
            )
        states_BLH: Tensor = output.last_hidden_state.float()
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        return (states_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)

    def _with_images(self, ids_BL: Tensor, images: Images) -> Tensor:
        """The embeddings [B, L, H] of the tokens, with the images' own in their places."""
        assert self.vision is not None, "`batch` refuses images without an image side"
        tokens_KNH: Tensor = self.vision(images.pixels)
        embedded_BLH: Tensor = self.text.get_input_embeddings()(ids_BL)  # type: ignore[operator]
        places_N = torch.arange(tokens_KNH.shape[1], device=ids_BL.device)
        at = (images.rows[:, None], images.starts[:, None] + places_N)
        return embedded_BLH.index_put(at, tokens_KNH.to(embedded_BLH.dtype))

    def batch(
        self,
        items: Sequence[str | Tensor],
        chunks: int = CHUNKS,
        prompt: str | None = None,
        *,
        micro_batch: int | None = None,
    ) -> TextBatch:
        """Tokenise items into so many chunks of like length, cut where it costs least padding.

        With `micro_batch` chunks have that many items instead. An item is a text, which gets the
        student's prompt, or `prompt` where it is given, or an image: its pixels, uint8 [3, S, S],
        as the preprocessing of the image side makes them.

        Raises:
            StudentError: an image, for a student without an image side.
        """
        before = self.spec.prompt if prompt is None else prompt
        texts = [before + item for item in items if isinstance(item, str)]
        encoded = iter(self.tokenizer.encode(texts))
        image, first = self.image_row() if len(texts) < len(items) else ([], 0)
        ids = [next(encoded) if isinstance(item, str) else image for item in items]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        cuts = (
            [slice(i, i + micro_batch) for i in range(0, len(order), micro_batch)]
            if micro_batch
            else cheapest_parts([len(ids[i]) for i in order], chunks)
        )
        parts = [order[cut] for cut in cuts]
        return TextBatch(
            tuple(padded([ids[i] for i in part], self.tokenizer.pad_id) for part in parts),
            torch.tensor(order).argsort(),
            tuple(images_of([items[i] for i in part], first) for part in parts) if image else (),
        )

    def image_row(self) -> tuple[list[int], int]:
        """The ids of a row that holds an image, and the place of its first image token.

        Raises:
            StudentError: the student has no image side, or its tokenizer or its longest input has
                no room for images.
        """
        if self.vision is None:
            raise StudentError("the student reads texts alone: it has no image side")
        return self.tokenizer.image_row(IMAGE_TOKENS, self.vision.spec.image_tokens)

    def add_vision(self, vision: Vision) -> None:
        """Give the student an image side, and its tokenizer and embeddings the image tokens.

        The embeddings of new tokens are the mean of all others: stage 4 leaves them frozen.

        Raises:
            StudentError: an image would be longer than the longest input.
        """
        new = self.tokenizer.add_tokens(IMAGE_TOKENS)
        table: Any = self.text.get_input_embeddings()  # type: ignore[operator]
        mean_H = table.weight.detach().mean(0)
        if max(new, default=0) >= len(table.weight):
            self.text.resize_token_embeddings(max(new) + 1, mean_resizing=False)  # type: ignore[operator]
            table = self.text.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            table.weight[new] = mean_H
        self.vision = vision
        self.spec = self.spec.model_copy(update={"vision": vision.spec})
        self.image_row()

    def parameters_of(self, groups: Sequence[str]) -> dict[str, nn.Parameter]:
        """The parameters of the named groups, by their full names, in the model's order.

        Groups are `text`, `layers[i]`, `layers[a:b]`, `heads`, the heads' own names, `vision` (the
        vision model) and `pooler` (the projection of the image tokens). A pooler over the first
        token, which some families have, belongs to none: the mean is pooled. So does SigLIP's.

        Raises:
            StageError: a name that matches nothing.
        """
        chosen: set[int] = set()
        for group in groups:
            chosen |= {id(parameter) for parameter in self._group(group).parameters()}
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if id(parameter) in chosen and not name.startswith(("text.pooler.", UNUSED))
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
        below = [name for name in trained if name.startswith(("text.", "vision."))]
        if len(below) > sum(map(sum, inside)):
            return layers  # what is embedded trains too: the graph spans the whole stack
        first = next((i for i, trains in enumerate(inside) if any(trains)), len(layers))
        return layers[first:]

    def compute_layers_again(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Gradient checkpointing: keep the inputs of layers with a graph, not what lies inside.

        transformers' own switch makes the embeddings' output require a gradient, and so keeps a
        graph through frozen layers; this one leaves what is frozen alone, in any body.
        """
        sees = [name for name in trained if name.startswith("vision.encoder.")]
        vision_layers = self.vision.layers if self.vision is not None and sees else ()
        for layer in (*self.layers_with_graph(trained), *vision_layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _group(self, name: str) -> nn.Module:
        if name == "text":
            return self.text
        if name == "heads":
            return self.heads
        if name in self.heads:
            return self.heads[name]
        if name in ("vision", "pooler"):
            if self.vision is None:
                raise StageError(
                    f"the stage names {name}, but the student reads texts alone: give it "
                    "[student.vision] in the recipe"
                )
            group = self.vision.encoder if name == "vision" else self.vision.pooler
            if not list(group.parameters()):
                raise StageError(
                    "the stage names pooler, which has no parameters: student.vision.projection "
                    "is false"
                )
            return group
        match = _LAYERS.match(name)
        layers = body_layers(self.text)
        if match:
            index, start, stop = (None if part is None else int(part) for part in match.groups())
            if index is None:
                chosen = list(layers)[start:stop]
            else:
                chosen = [layers[index]] if -len(layers) <= index < len(layers) else []
            if chosen:
                return nn.ModuleList(chosen)
            raise StageError(f"{name} matches none of the student's {len(layers)} layers")
        raise StageError(
            f"there is no parameter group {name!r}; groups are text, layers[-3:] (or another "
            f"index or slice), heads, {', '.join(self.heads)}, vision, pooler"
        )

    def save(self, folder: Path) -> None:
        """Write body, heads, tokenizer, image side and spec, in safetensors and JSON."""
        self.text.save_pretrained(folder / TEXT_FOLDER)  # type: ignore[operator]
        self.tokenizer.save(folder / TEXT_FOLDER)
        heads = {name: value.contiguous() for name, value in self.heads.state_dict().items()}
        save_file(heads, folder / HEADS_FILE)
        if self.vision is not None:
            self.vision.save(folder / VISION_FOLDER)
        facts = {"spec": self.spec.model_dump(mode="json"), "head_widths": self.head_widths}
        (folder / SPEC_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def create(
    spec: StudentSpec, folder: Path, target_width: int, seed: int, *, body: bool = True
) -> Student:
    """A new student from the model in `folder`: its body with the layers to keep, new heads.

    From a folder in Jasper's layout it has that one's heads, where one is as wide. The image side
    is added apart (`Student.add_vision`). Without the body: the same heads, which can be given
    `PooledBatch`es.

    Raises:
        StudentError: the folder holds no text encoder, or lacks a layer that is to be kept.
    """
    folder = transformer_folder(folder)
    text = start_body(folder) if body else Unloaded(start_configuration(folder))
    if body and spec.layers is not None:
        keep_layers(text, spec.layers)
    torch.manual_seed(seed)
    widths = {FULL_HEAD: target_width, **spec.reduced_heads}
    student = Student(text, widths, TextTokenizer(folder, spec.max_tokens), spec.text_side)
    load_heads(folder, student.heads)
    return student


def load(folder: Path) -> Student:
    """A student as `Student.save` wrote it.

    Raises:
        StudentError: the folder holds no saved student, or one that is damaged.
    """
    file = folder / SPEC_FILE
    if not file.is_file():
        raise StudentError(f"{folder} holds no student: expected {SPEC_FILE}")
    try:
        facts = json.loads(file.read_text())
        spec, widths = StudentSpec.model_validate(facts["spec"]), dict(facts["head_widths"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudentError(
            f"{file} is damaged: {error!r}; train the stage again, or take it from a copy"
        ) from None
    tokenizer = TextTokenizer(folder / TEXT_FOLDER, spec.max_tokens)
    student = Student(start_body(folder / TEXT_FOLDER), widths, tokenizer, spec)
    heads = folder / HEADS_FILE
    try:
        student.heads.load_state_dict(load_file(heads))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StudentError(
            f"{heads} is damaged: {error}; train the stage again, or take it from a copy"
        ) from None
    if spec.vision is not None:
        student.vision = load_vision(folder / VISION_FOLDER, student.hidden, spec.vision)
    return student
