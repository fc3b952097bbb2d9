"""The stages, a table. What a stage trains, by which losses, for how long. No torch.

The training loop never asks which stage it runs: it reads a row of this table, or a row that a
recipe changed. The paper's values are from sections 2.3 to 2.6; what the paper leaves open is
decided in `docs/paper-notes.md`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LOSSES = ("cosine", "similarity", "relative")
FULL_HEAD = "fc1"

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StageError(Exception):
    """A stage that cannot be run as asked: one line that says why, and what would do."""


class LossWeights(BaseModel):
    """λ₁, λ₂, λ₃ and the margin of Eq. 4 for one head; a loss of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cosine: Weight = 0.0
    similarity: Weight = 0.0
    relative: Weight = 0.0
    margin: Weight = 0.015


class StageSpec(BaseModel):
    """One stage.

    `trains` names parameter groups: `text` (the whole body), `layers[-3:]` (body layers, as a
    Python index or slice), `heads` (all of them) or one head. `heads` gives the losses of each
    head that has any. `batch_size` is global, over all processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str = Field(description="what the stage is for, in a few words")
    trains: tuple[str, ...] = Field(min_length=1, description="parameter groups that change")
    heads: dict[str, LossWeights] = Field(min_length=1, description="the losses of each head")
    learning_rate: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=3, description="texts in a step, over all processes")]
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="largest gradient norm")
    closed_form: tuple[str, ...] = Field(
        (), description="heads that begin as their closed form instead of as they are"
    )
    closed_form_rows: Annotated[int, Field(gt=0)] = Field(
        16_384, description="rows that the closed form is computed from"
    )


PAPER_WEIGHTS = LossWeights(cosine=10, similarity=200, relative=20)
REDUCED_WEIGHTS = LossWeights(similarity=200, relative=20)

STAGES: Mapping[int, StageSpec] = {
    1: StageSpec(
        purpose="FC1 alone learns to speak the teachers' space",
        trains=("fc1",),
        heads={"fc1": PAPER_WEIGHTS},
        learning_rate=1e-4,
        steps=4000,
        batch_size=128,
    ),
    2: StageSpec(
        purpose="FC1 and the last three layers",
        trains=("fc1", "layers[-3:]"),
        heads={"fc1": PAPER_WEIGHTS},
        learning_rate=8e-5,
        steps=7000,
        batch_size=128,
    ),
    3: StageSpec(
        purpose="every parameter of the text side, with the reduced heads",
        trains=("text", "heads"),
        heads={
            "fc1": PAPER_WEIGHTS,
            "fc2": REDUCED_WEIGHTS,
            "fc3": REDUCED_WEIGHTS,
            "fc4": REDUCED_WEIGHTS,
        },
        learning_rate=7e-5,
        steps=2200,
        batch_size=128,
    ),
}


def stage(number: int, changes: Mapping[str, Any] | None = None) -> StageSpec:
    """A row of the table, with a recipe's changes over it. Heads are merged one by one.

    Raises:
        StageError: no such stage, an unknown field (with the nearest known one), a bad value.
    """
    if number not in STAGES:
        raise StageError(f"there is no stage {number}; stages are {', '.join(map(str, STAGES))}")
    values = STAGES[number].model_dump()
    for name, value in (changes or {}).items():
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise StageError(f"stage {number} has no field {name!r}{hint}")
        values[name] = value
    try:
        return StageSpec.model_validate(values)
    except ValidationError as error:
        raise StageError(f"stage {number}: {first_problem(error)}") from None


TABLE_COLUMNS = ("stage", "trains", "losses", "learning rate", "steps", "batch")


def table() -> list[tuple[str, ...]]:
    """The stages as rows of text under `TABLE_COLUMNS`, for people."""
    return [
        (
            str(number),
            " + ".join(spec.trains),
            "; ".join(f"{head}: {_in_words(weights)}" for head, weights in spec.heads.items()),
            f"{spec.learning_rate:g}",
            f"{spec.steps:,}",
            str(spec.batch_size),
        )
        for number, spec in STAGES.items()
    ]


def _in_words(weights: LossWeights) -> str:
    on = [(loss, getattr(weights, loss)) for loss in LOSSES if getattr(weights, loss)]
    return " + ".join(f"{weight:g} {loss}" for loss, weight in on)


def with_weights(spec: StageSpec, weights: Mapping[str, float]) -> StageSpec:
    """The same stage with these weights (or the margin) on every head that had them.

    A weight that is 0 for a head by design (the cosine of a reduced head) stays 0.

    Raises:
        StageError: an unknown loss, or a weight that is no number ≥ 0.
    """
    for name in weights:
        if name not in LossWeights.model_fields:
            known = ", ".join(LossWeights.model_fields)
            raise StageError(f"there is no loss {name!r}; weights are {known}")
    heads = {}
    for head, old in spec.heads.items():
        new = {name: value for name, value in weights.items() if getattr(old, name) != 0}
        try:
            heads[head] = LossWeights.model_validate({**old.model_dump(), **new})
        except ValidationError as error:
            raise StageError(f"weights of {head}: {first_problem(error)}") from None
    return spec.model_copy(update={"heads": heads})


def check(spec: StageSpec, head_widths: Mapping[str, int], target_width: int, rows: int) -> None:
    """Refuse, before a model is loaded, a stage that asks the impossible.

    `head_widths` are the student's heads, `rows` the number of rows there are to train on.

    Raises:
        StageError: a head that is not there, no loss at all, a cosine loss on a head that is not
            as wide as its target, or fewer rows than one batch.
    """
    for head, weights in spec.heads.items():
        if head not in head_widths:
            raise StageError(f"the student has no head {head!r}; it has {', '.join(head_widths)}")
        if weights.cosine and head_widths[head] != target_width:
            raise StageError(
                f"{head} is {head_widths[head]} wide and its target {target_width}: the cosine "
                "loss compares vectors of one width; give it weight 0 (similarity and relative "
                "losses compare any widths)"
            )
    for head in spec.closed_form:
        if head not in head_widths:
            raise StageError(
                f"closed_form names {head!r}; the student has {', '.join(head_widths)}"
            )
    if not any(getattr(w, loss) for w in spec.heads.values() for loss in LOSSES):
        raise StageError("every loss of the stage has weight 0: nothing would be trained")
    if rows < spec.batch_size:
        raise StageError(f"a batch of {spec.batch_size} texts, but only {rows} rows to train on")


def learning_rate_at(spec: StageSpec, step: int) -> float:
    """The learning rate of step `step` (counted from 0): linear warm-up, then the schedule."""
    warm = round(spec.warmup * spec.steps)
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - warm) / max(1, spec.steps - warm)
    if spec.schedule == "linear":
        return spec.learning_rate * (1 - progress)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def first_problem(error: ValidationError) -> str:
    """The first of a validation's problems, in one line."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']} (found {problem['input']!r})"
