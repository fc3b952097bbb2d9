"""What a stage would train, counted and checked on a model without weights: the dry run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.images import Preprocessing
from student.body import keep_layers, most_positions
from student.jasper import head_widths, image_side_settings, start_configuration
from student.model import VISION_FOLDER, Student
from student.rows import rows_to_train_on
from student.run import StageRun, read_record, start_of
from student.seeing import Seeing
from student.spec import FreshVision, StudentError
from student.stages import FULL_HEAD, StageError, head_of
from student.teacher_head import own_heads
from student.tokens import TextTokenizer
from student.vision import IMAGE_TOKENS, Vision, fresh_configuration
from teacher_cache.models import transformer_folder
from teacher_cache.reader import CacheReader

FLOATS_PER_LAYER = 16
"""Activations kept for the backward pass of one layer: about so many floats a token and unit of
hidden width (attention by a fused kernel, no checkpointing)."""


def plan(
    run: StageRun, reader: CacheReader, init: Path, seeing: Seeing | None = None
) -> dict[str, Any]:
    """Count parameters, rows, epochs and memory of a stage; no weight is loaded.

    Bytes are an estimate for fp32: 4 for each weight, 12 more for each trained one (gradient and
    AdamW's two moments); activations as `FLOATS_PER_LAYER` says, from the first layer that trains.

    Raises:
        StageError: as `check_model`.
        StudentError: the start of the stage is not there, or the model has no such layers or not
            so many positions.
    """
    start = start_of(run)
    student = _skeleton(run, reader, init, seeing)
    rows = len(reader.train_rows) if seeing is None else len(seeing.pairs.train)
    if (chosen := rows_to_train_on(reader, run.spec, run.teachers)) is not None:
        rows = len(chosen)
    _check(run, reader, init, student, _heads_trained_before(run))
    trained = student.parameters_of(run.spec.trains)
    total = sum(parameter.numel() for parameter in student.parameters())
    training = sum(parameter.numel() for parameter in trained.values())
    tokens = (run.spec.micro_batch or run.spec.batch_size) * run.student.max_tokens
    layers = len(student.layers_with_graph(trained))
    floats = layers * FLOATS_PER_LAYER
    if run.spec.gradient_checkpointing and layers:
        floats = layers + FLOATS_PER_LAYER  # each layer's input, and one layer computed again
    activations = 4 * tokens * student.hidden * floats
    return {
        "stage": run.spec.model_dump(mode="json"),
        "start": str(start or f"{run.student.init} (untrained)"),
        "parameters": total,
        "trained": training,
        "rows": rows,
        "epochs": run.spec.steps * run.spec.batch_size / rows,
        "target_width": student.head_widths[FULL_HEAD],
        "state_bytes": 4 * total + 12 * training,
        "activation_bytes": activations,
    }


def check_model(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    seeing: Seeing | None = None,
    *,
    trained_before: Sequence[str] | None = None,
) -> None:
    """Refuse, before its weights are loaded, a stage that does not fit the student's model.

    `trained_before` are the heads that the stages before it train, where these are still to come:
    a sweep asks of all its stages before the first. Else the start of the stage says it.

    Raises:
        StageError: a parameter group that matches nothing, parameters that no loss reaches, a
            closed form that the head or the model does not allow, an FC1 to learn from that
            nothing has trained, images to learn from a head that nothing has, or fewer than a
            batch of short texts.
        StudentError: the start of the stage is not there, or the model has no such layers or not
            so many positions.
    """
    before = _heads_trained_before(run) if trained_before is None else trained_before
    _check(run, reader, init, _skeleton(run, reader, init, seeing), before)
    rows_to_train_on(reader, run.spec, run.teachers)


def _check(
    run: StageRun, reader: CacheReader, init: Path, student: Student, before: Sequence[str]
) -> None:
    spec = run.spec
    most = most_positions(student.text)
    if most is not None and run.student.max_tokens > most:
        raise StudentError(
            f"student.max_tokens is {run.student.max_tokens}, but {run.student.init} has "
            f"embeddings of {most} positions; give at most so many"
        )
    heads = [head_of(entry)[0] for entry in spec.heads]
    reached = set(student.parameters_of(("text", *heads)))
    useless = sorted(
        name
        for name in student.parameters_of(spec.trains)
        if name not in reached and not name.startswith("vision.")
    )
    if useless:
        raise StageError(
            f"the stage trains {useless[0]} (and {len(useless) - 1} more), which none of its "
            f"losses reaches; heads with losses: {', '.join(spec.heads)}"
        )
    if spec.reads == "images":
        widths = set() if start_of(run) else head_widths(transformer_folder(init))
        own = [h for h, width in student.head_widths.items() if width in widths]
        untrained = [h for h in heads if h not in (*own, *before)]
        if untrained:
            raise StageError(
                f"{untrained[0]} ({student.head_widths[untrained[0]]} wide) was never trained: its "
                "vectors of captions are nothing to learn; train stage 3 first, or give its losses "
                "weight 0"
            )
    learned = {*heads, *spec.closed_form, *before}
    for head, weights in spec.heads.items():
        if FULL_HEAD in weights.target and FULL_HEAD not in learned:
            raise StageError(f"{head} is to learn from FC1, which no stage has trained yet")
    for head, way in spec.closed_form.items():
        if way in ("principal", "fitted") and student.head_widths[head] > student.hidden:
            raise StageError(
                f"{head} is {student.head_widths[head]} wide, the student's pooled state "
                f"{student.hidden}: a closed form has at most as many directions"
            )
        found = min(reader.width(run.teachers), spec.closed_form_rows, len(reader.train_rows))
        if way == "fitted" and student.head_widths[head] > found:
            raise StageError(
                f"{head} is {student.head_widths[head]} wide, but the cached vectors that it is to "
                f"be fitted to have at most {found} directions (the target's width, "
                "closed_form_rows, the rows to train on)"
            )
        if way == "identity" and student.head_widths[head] != student.hidden:
            raise StageError(
                f"{head} is {student.head_widths[head]} wide, the student's pooled state "
                f"{student.hidden}: it cannot begin as that state; begin with "
                'closed_form = { fc1 = "ridge" }'
            )
        if way == "copy":
            if run.student.layers is not None:
                raise StageError(
                    "a teacher's head can be copied where the student's body is that teacher's, "
                    f"but the student keeps layers {list(run.student.layers)} of it; begin with "
                    'closed_form = { fc1 = "ridge" }'
                )
            own_heads(init, reader.blocks(run.teachers))


def _heads_trained_before(run: StageRun) -> list[str]:
    start = start_of(run)
    return [] if start is None else list(read_record(start.parent)["trained_heads"])


def _skeleton(run: StageRun, reader: CacheReader, init: Path, seeing: Seeing | None) -> Student:
    from transformers import AutoModel, SiglipVisionModel

    folder = transformer_folder(init)
    with torch.device("meta"):
        body: nn.Module = AutoModel.from_config(start_configuration(folder))  # type: ignore[no-untyped-call]
        if run.student.layers is not None:
            keep_layers(body, run.student.layers)
        widths = {FULL_HEAD: reader.width(run.teachers), **run.student.reduced_heads}
        student = Student(body, widths, TextTokenizer(folder, run.student.max_tokens), run.student)
    if seeing is not None and run.student.vision is not None:
        start = start_of(run)
        own = start and start / VISION_FOLDER
        place = own if own and own.is_dir() else seeing.vision
        if place is None:
            sizes = run.student.vision.fresh or FreshVision()
            config, prepared = fresh_configuration(sizes), Preprocessing(sizes.side)
        else:
            config, prepared = image_side_settings(place)
        with torch.device("meta"):
            encoder = SiglipVisionModel(config)
            student.vision = Vision(encoder, student.hidden, run.student.vision, prepared)
        student.tokenizer.add_tokens(IMAGE_TOKENS)
        student.image_row()
    return student
