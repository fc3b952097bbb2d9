"""The stages, a table. What a stage trains, by which losses, for how long. No torch.

The training loop never asks which stage it runs: it reads a row of this table, or a row that a
recipe changed. The paper's values are from sections 2.3 to 2.6; what the paper leaves open is
decided in `docs/paper-notes.md`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

LOSSES = ("cosine", "similarity", "relative", "contrastive")
FULL_HEAD = "fc1"
LEAST_TEXTS = 3
"""Texts that a loss must see together: the relative loss compares two pairs, which three have."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Target = Literal["teachers", "fc1", "captions"]
Start = Literal["ridge", "copy", "identity", "principal", "fitted"]
FULL_STARTS: tuple[Start, ...] = ("ridge", "copy", "identity")

_ENTRY = re.compile(r"(\w+)(?:\[:(\d+)\])?")


class StageError(Exception):
    """A stage that cannot be run as asked: one line that says why, and what would do."""


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _usual_starts(value: Any) -> Any:
    """Names alone mean each head's usual start: ridge for FC1, principal for a reduced head."""
    if not isinstance(value, list | tuple):
        return value
    return {name: "ridge" if name == FULL_HEAD else "principal" for name in value}


class LossWeights(BaseModel):
    """What one head learns: λ₁, λ₂, λ₃ and the margin of Eq. 4, from which target, at which share.

    A loss of weight 0 is not computed; a head with no other has no part in the stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cosine: Weight = Field(0.0, description="λ₁; only where the head is as wide as its target")
    similarity: Weight = Field(0.0, description="λ₂")
    focus: Positive | None = Field(
        None,
        description="of the similarity loss, in units of cosine: a pair of texts counts "
        "exp(cosine of the teachers / focus), so that near pairs, which decide what is found "
        "first, count most; without it all pairs count alike, as in Eq. 2",
    )
    relative: Weight = Field(0.0, description="λ₃")
    contrastive: Weight = Field(
        0.0,
        description="of a loss that the paper has not: each vector picks its own target among the "
        "batch's; only where the head is as wide as its target",
    )
    temperature: Positive = Field(0.05, description="of the contrastive loss")
    margin: Weight = Field(0.015, description="of the relative loss, in units of cosine")
    ties: Literal["exclude", "include"] = Field(
        "exclude",
        description="pairs that the teachers find equally similar: `exclude`d as in Eq. 3, or "
        "`include`d as in the authors' code (label -1)",
    )
    target: Annotated[tuple[Target, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (
        Field(
            ("teachers",),
            description='whose vectors: `"teachers"`, `"fc1"` (FC1\'s own, without gradient: the '
            'self-distillation that the paper proposes for reduced heads), `"captions"` (the '
            "head's own of the image's caption), or a list, whose losses are added",
        )
    )
    share: Positive = Field(1.0, description="the head's share in the total of all heads")

    @property
    def learns(self) -> bool:
        """Whether any loss has a weight."""
        return any(getattr(self, loss) for loss in LOSSES)


class StageSpec(BaseModel):
    """One stage: what trains, by which losses, for how long, and what a step may hold in memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str = Field(description="what the stage is for, in a few words")
    trains: tuple[str, ...] = Field(
        min_length=1,
        description="parameter groups that change: `text` (the whole body), `layers[-3:]` (body "
        "layers, as a Python index or slice), `heads` (all of them) or one head by its name; where "
        "the stage reads images also `vision`, and `pooler`, the image side's projection",
    )
    heads: dict[str, LossWeights] = Field(
        min_length=1,
        description="what each head learns; `fc1[:512]` is the first 512 columns of FC1, to be "
        "used alone, an alternative to a reduced head",
    )
    reads: Literal["texts", "images"] = Field(
        "texts", description="what the student is given: the cache's texts, or images"
    )
    total: Literal["sum", "mean"] = Field(
        "sum", description="`sum` or `mean` of the heads' losses, each with its share"
    )
    learning_rate: Positive = Field(description="the largest, after warm-up")
    steps: Annotated[int, Field(gt=0)] = Field(description="updates of the parameters")
    batch_size: Annotated[int, Field(ge=LEAST_TEXTS)] = Field(
        description="the global batch: texts in a step, over all processes"
    )
    order: Literal["shuffle", "window", "corpus"] = Field(
        "shuffle",
        description="all rows shuffled; `window`: rows within windows of shards, for a cache "
        "larger than memory; `corpus`: as they lie in the cache, related texts adjacent",
    )
    window_shards: Annotated[int, Field(gt=0)] = Field(16, description="shards in a window")
    longest: Annotated[int, Field(gt=0)] | None = Field(
        None,
        description="only texts of at most so many tokens, by the teachers' largest count: short "
        "texts are cheap, and in the same time there are more of them",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="of the learning rate after warm-up: `cosine` or `linear` down to 0, or "
        "`constant`",
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.01, description="of AdamW"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of AdamW")
    clip: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="largest gradient norm; `inf` leaves gradients as they are"
    )
    probe_every: Annotated[int, Field(ge=0)] = Field(
        500, description="steps between two looks at held-out rows; 0 for none"
    )
    probe_rows: Annotated[int, Field(ge=3)] = Field(512, description="held-out rows looked at")
    keep: Literal["last", "best"] = Field(
        "last",
        description="which step's parameters become the stage's model: the `last`, or those of the "
        "`best` look, where the heads' mean order of similarities (Spearman) was highest",
    )
    teacher_weights: dict[str, Positive] = Field(
        default_factory=dict,
        description="by teacher: factor of its unit block before the target is normalised again, "
        "1 where not given; two texts are then as similar as the mean of the teachers' cosines, "
        "weighted by the squares",
    )
    vector_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the pooled state's columns that each text loses in a step"
    )
    gather: bool = Field(
        True,
        description="losses see the global batch; with `false` each process's losses see its own "
        "texts and gradients are averaged, as in the authors' code",
    )
    micro_batch: Annotated[int, Field(gt=0)] | None = Field(
        None,
        description="texts of a process whose activations are in memory at a time, for a batch "
        "larger than memory: a body that trains then runs twice; losses see the whole batch",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep only the inputs of the body's layers and compute the rest again: the "
        "same gradients, less memory, more time",
    )
    closed_form: Annotated[dict[str, Start], BeforeValidator(_usual_starts)] = Field(
        default_factory=dict,
        description="heads that begin solved instead of as they are: `ridge` (FC1 by ridge "
        "regression), `copy` (the teacher's own head, where the student's body is that "
        "teacher's; the other blocks by ridge), `identity` (FC1 as the pooled state itself, where "
        "the body keeps the last layer of a teacher that has no head), `principal` (a reduced "
        "head as FC1's principal part), `fitted` (a reduced head as the part of FC1 under which "
        "the cached vectors keep their similarities best, by the head's focus); a list of heads "
        "means `ridge` and `principal`",
    )
    closed_form_rows: Annotated[int, Field(gt=0)] = Field(
        16_384, description="rows that the closed form is computed from"
    )

    def outcome(self) -> dict[str, Any]:
        """What decides the outcome, as plain data: all but the fields that only save memory."""
        return self.model_dump(mode="json", exclude=set(MEMORY_FIELDS))


MEMORY_FIELDS = ("micro_batch", "gradient_checkpointing")
"""Fields that change no result but by rounding: a stage may be resumed under other ones."""


PAPER_WEIGHTS = LossWeights(cosine=10, similarity=200, relative=20)
REDUCED_WEIGHTS = LossWeights(similarity=200, relative=20)
CAPTION_WEIGHTS = PAPER_WEIGHTS.model_copy(update={"target": ("captions",)})

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
    4: StageSpec(
        purpose="the vision encoder alone learns to say of an image what its caption says",
        reads="images",
        trains=("vision",),
        heads=dict.fromkeys(("fc1", "fc2", "fc3", "fc4"), CAPTION_WEIGHTS),
        total="mean",
        learning_rate=1e-4,
        steps=3500,
        batch_size=90,
    ),
}


def stage(number: int, changes: Mapping[str, Any] | None = None) -> StageSpec:
    """A row of the table, with a recipe's changes over it.

    Heads are merged one by one and weight by weight; one whose losses all have weight 0 goes.

    Raises:
        StageError: no such stage, an unknown field (with the nearest known one), a bad value.
    """
    if number not in STAGES:
        raise StageError(f"there is no stage {number}; stages are {', '.join(map(str, STAGES))}")
    values = STAGES[number].model_dump()
    for name, value in (changes or {}).items():
        if name not in values:
            raise StageError(f"stage {number} has no field {name!r}{did_you_mean(name, values)}")
        if name == "heads" and isinstance(value, Mapping):
            values[name] = _merged(values[name], value)
        else:
            values[name] = value
    try:
        spec = StageSpec.model_validate(values)
    except ValidationError as error:
        raise StageError(f"stage {number}: {first_problem(error)}") from None
    return _with_heads(spec, spec.heads)


def _merged(heads: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Each head's changes over what it had; what is no table is left to validation."""
    merged = dict(heads)
    for head, change in changes.items():
        merged[head] = {**merged.get(head, {}), **change} if isinstance(change, Mapping) else change
    return merged


def _with_heads(spec: StageSpec, heads: Mapping[str, LossWeights]) -> StageSpec:
    learning = {head: weights for head, weights in heads.items() if weights.learns}
    if not learning:
        raise StageError("every loss of the stage has weight 0: nothing would be trained")
    return spec.model_copy(update={"heads": learning})


def with_weights(
    stages: Mapping[int, StageSpec], weights: Mapping[str, float]
) -> dict[int, StageSpec]:
    """The same stages with these weights (or margin, temperature, focus) on all their heads.

    A loss that has weight 0 on a head by design (the cosine of a reduced head) stays without. A
    head whose losses then all have weight 0 has no part in its stage.

    Raises:
        StageError: an unknown loss, a weight that is no number ≥ 0, one of a loss that no head of
            any stage has, or a stage without a loss that is left.
    """
    known = (*LOSSES, "margin", "temperature", "focus")
    for name, value in weights.items():
        if name not in known:
            raise StageError(f"there is no loss {name!r}; weights are {', '.join(known)}")
        heads = [each for spec in stages.values() for each in spec.heads.values()]
        if value and not any(_takes(each, name) for each in heads):
            number, spec = next(iter(stages.items()))
            raise StageError(
                f"the weight of {name} would change nothing: it is 0 on every head, which stays "
                f"so; give it to a head, as stages.{number}.heads.{next(iter(spec.heads))}.{name}"
            )
    return {number: _reweighted(spec, weights) for number, spec in stages.items()}


def _takes(weights: LossWeights, name: str) -> bool:
    return name not in LOSSES or getattr(weights, name) != 0


def _reweighted(spec: StageSpec, weights: Mapping[str, float]) -> StageSpec:
    heads = {}
    for head, old in spec.heads.items():
        new = {name: value for name, value in weights.items() if _takes(old, name)}
        try:
            heads[head] = LossWeights.model_validate({**old.model_dump(), **new})
        except ValidationError as error:
            raise StageError(f"weights of {head}: {first_problem(error)}") from None
    return _with_heads(spec, heads)


def head_of(entry: str) -> tuple[str, int | None]:
    """The head that an entry of `heads` names and how many of its first columns: None for all.

    `fc2` → ("fc2", None), `fc1[:512]` → ("fc1", 512).

    Raises:
        StageError: it is spelled otherwise.
    """
    match = _ENTRY.fullmatch(entry)
    if match is None or match[2] == "0":
        raise StageError(f"{entry!r} is no head: expected a name like fc2, or fc1[:512]")
    return match[1], None if match[2] is None else int(match[2])


def width_of(entry: str, head_widths: Mapping[str, int]) -> int:
    """How wide the vectors of a head, or of its first columns, are.

    Raises:
        StageError: there is no such head, or it has no more columns than are to be cut from it.
    """
    head, columns = head_of(entry)
    if head not in head_widths:
        raise StageError(f"the student has no head {head!r}; it has {', '.join(head_widths)}")
    if columns is not None and columns >= head_widths[head]:
        raise StageError(f"{entry} is no part of {head}, which is {head_widths[head]} wide")
    return columns or head_widths[head]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a refusal of an unknown name: the nearest known one, nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_problem(error: ValidationError) -> str:
    """The first of a validation's problems, in one line."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']} (found {problem['input']!r})"
