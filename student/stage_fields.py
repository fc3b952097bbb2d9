"""The stages, and everything that a recipe can say about one, as tables for people. No torch.

The README has the one table, docs/stages.md the other.
"""

from __future__ import annotations

import json

from pydantic.fields import FieldInfo

from student.stages import LOSSES, STAGES, LossWeights, StageSpec

TABLE_COLUMNS = ("stage", "trains", "losses", "learning rate", "steps", "batch")


def table() -> list[tuple[str, ...]]:
    """The stages as rows of text under `TABLE_COLUMNS`, for people."""
    return [row(number, spec) for number, spec in STAGES.items()]


def row(number: int, spec: StageSpec) -> tuple[str, ...]:
    """A stage as a row of text under `TABLE_COLUMNS`."""
    return (
        str(number),
        " + ".join(spec.trains),
        "; ".join(f"{head}: {_in_words(weights)}" for head, weights in spec.heads.items()),
        f"{spec.learning_rate:g}",
        f"{spec.steps:,}",
        str(spec.batch_size),
    )


def _in_words(weights: LossWeights) -> str:
    on = [(loss, getattr(weights, loss)) for loss in LOSSES if getattr(weights, loss)]
    return " + ".join(f"{weight:g} {loss}" for loss, weight in on)


FIELD_COLUMNS = ("field", "default", "what it is")


def fields() -> list[tuple[str, ...]]:
    """Everything a recipe can say about a stage, as rows of text under `FIELD_COLUMNS`."""
    return [
        (f"{prefix}{name}", default_in_words(field, "the stage's"), field.description or "")
        for prefix, model in (("", StageSpec), ("heads.NAME.", LossWeights))
        for name, field in model.model_fields.items()
    ]


def default_in_words(field: FieldInfo, required: str) -> str:
    """A field's default, as JSON; `required` where it has none."""
    if field.is_required():
        return required
    default = field.get_default(call_default_factory=True, validated_data={})
    plain = list(default) if isinstance(default, tuple) else default
    return "none" if plain is None or plain == {} else json.dumps(plain)
