"""What a stage would train, counted on a model without weights: the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from student.body import body_layers, configuration, keep_layers
from student.model import Student
from student.run import StageRun, start_of
from student.stages import FULL_HEAD
from student.tokens import TextTokenizer
from teacher_cache.models import transformer_folder
from teacher_cache.reader import CacheReader

FLOATS_PER_LAYER = 16
"""Activations kept for the backward pass of one layer: about so many floats a token and unit of
hidden width (attention by a fused kernel, no checkpointing)."""


def plan(run: StageRun, reader: CacheReader, init: Path) -> dict[str, Any]:
    """Count parameters, rows, epochs and memory of a stage; no weight is loaded.

    Bytes are an estimate for fp32: 4 for each weight, 12 more for each trained one (gradient and
    AdamW's two moments); activations as `FLOATS_PER_LAYER` says, from the first layer that trains.

    Raises:
        StageError: a parameter group that matches nothing.
        StudentError: the start of the stage is not there, or the model has no such layers.
    """
    start = start_of(run)
    student = _skeleton(run, reader, init)
    trained = student.parameters_of(run.spec.trains)
    total = sum(parameter.numel() for parameter in student.parameters())
    training = sum(parameter.numel() for parameter in trained.values())
    hidden: int = student.text.config.hidden_size  # type: ignore[union-attr, assignment]
    tokens = run.spec.batch_size * run.student.max_tokens
    activations = 4 * tokens * hidden * FLOATS_PER_LAYER * _layers_with_graph(student, trained)
    return {
        "stage": run.spec.model_dump(mode="json"),
        "start": str(start or f"{run.student.init} (untrained)"),
        "parameters": total,
        "trained": training,
        "rows": len(reader.train_rows),
        "epochs": run.spec.steps * run.spec.batch_size / len(reader.train_rows),
        "target_width": student.head_widths[FULL_HEAD],
        "state_bytes": 4 * total + 12 * training,
        "activation_bytes": activations,
    }


def _skeleton(run: StageRun, reader: CacheReader, init: Path) -> Student:
    from transformers import AutoModel

    folder = transformer_folder(init)
    with torch.device("meta"):
        body: nn.Module = AutoModel.from_config(configuration(folder))  # type: ignore[no-untyped-call]
        if run.student.layers is not None:
            keep_layers(body, run.student.layers)
        widths = {FULL_HEAD: reader.width(run.teachers), **run.student.reduced_heads}
        return Student(body, widths, TextTokenizer(folder, run.student.max_tokens), run.student)


def _layers_with_graph(student: Student, trained: dict[str, nn.Parameter]) -> int:
    layers = body_layers(student.text)
    chosen = {id(parameter) for parameter in trained.values()}
    inside = [any(id(p) in chosen for p in layer.parameters()) for layer in layers]
    in_stack = sum(1 for layer in layers for _ in layer.parameters())
    if len([n for n in trained if n.startswith("text.")]) > in_stack:
        return len(layers)  # embeddings train too: the graph spans the whole stack
    return len(layers) - inside.index(True) if True in inside else 0
