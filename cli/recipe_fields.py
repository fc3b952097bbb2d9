"""Everything that a recipe can say, as tables for people. No torch.

docs/recipes.md has them, `jasper-cache build --fields` prints them. The fields of a stage are
`student.stage_fields`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from cli.recipe import Recipe
from data.corpus import CorpusSpec, SourceSpec
from data.pairs_spec import PairsSpec
from student.spec import FreshVision, StudentSpec, VisionSpec
from student.stage_fields import default_in_words
from teacher_cache.teachers import TeacherSpec

MODELS: Mapping[str, type[BaseModel]] = {
    "": Recipe,
    "[corpus]": CorpusSpec,
    "[[corpus.sources]]": SourceSpec,
    "[[teachers]]": TeacherSpec,
    "[student]": StudentSpec,
    "[student.vision]": VisionSpec,
    "[student.vision.fresh]": FreshVision,
    "[images]": PairsSpec,
}
"""By the head of its table in TOML; a recipe can have several of what is in two brackets."""


@dataclass(frozen=True, slots=True)
class Section:
    """A table of a recipe: its head, what it is, and its fields.

    A field is a row of text under `student.stage_fields.FIELD_COLUMNS`.
    """

    head: str
    meaning: str
    fields: list[tuple[str, str, str]]


def sections() -> list[Section]:
    """Every table of a recipe but the stages'; first, without a head, what stands above them."""
    tables = {head.strip("[]") for head in MODELS} | {"stages"}
    return [_section(head, model, tables) for head, model in MODELS.items()]


def _section(head: str, model: type[BaseModel], tables: set[str]) -> Section:
    name = head.strip("[]")
    fields = [
        (field, default_in_words(info, "required"), info.description or "")
        for field, info in model.model_fields.items()
        if f"{name}.{field}".lstrip(".") not in tables
    ]
    meaning, *_ = (inspect.getdoc(model) or "").splitlines()
    return Section(head, meaning, fields)
