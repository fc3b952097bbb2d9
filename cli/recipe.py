"""A recipe: one TOML file that says what a cache and a student are made of. No torch.

Each part is validated by the module it configures; this one only puts them together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.corpus import CorpusSpec, SourceSpec
from data.pairs_spec import PairsSpec
from student.spec import StudentSpec, VisionSpec
from student.stages import LossWeights, StageSpec, did_you_mean, stage
from teacher_cache.teachers import TeacherSpec


class RecipeError(Exception):
    """A recipe or an option that cannot be followed: one line that says what, where, and why."""


class Recipe(BaseModel):
    """What a run is made of. Command-line options override it; `run.json` keeps what ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str = Field("", description="what the recipe is for")
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of the order of training and of new heads"
    )
    corpus: CorpusSpec | None = Field(None, description="the texts")
    teachers: tuple[TeacherSpec, ...] = Field((), description="in the order of their blocks")
    images: PairsSpec | None = Field(None, description="image-caption pairs, for stage 4")
    student: StudentSpec = Field(default_factory=StudentSpec)
    stages: dict[int, dict[str, Any]] = Field(
        default_factory=dict, description="changes to the table of stages, by number"
    )

    def stage(self, number: int) -> StageSpec:
        """A row of the table of stages with this recipe's changes.

        Raises:
            StageError: no such stage or field, or a bad value.
        """
        return stage(number, self.stages.get(number))


def load(path: Path | None) -> tuple[Recipe, Path]:
    """Read a recipe, and give the folder that its relative paths are seen from.

    Without a path: the defaults, which are the paper's, and the working folder.

    Raises:
        RecipeError: no such file, broken TOML, an unknown key (with the nearest known one), or a
            value that does not fit.
        StageError: a stage that does not exist or a field of it that does not.
    """
    if path is None:
        return Recipe(), Path()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}; see the folder recipes/") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not a readable TOML file: {error}") from None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_in_words(error)}") from None
    for number in recipe.stages:
        recipe.stage(number)
    return recipe, path.parent


def _in_words(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "the recipe"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{_hint(str(problem['loc'][-1]))}"
    return f"{where}: {problem['msg']}, found {problem['input']!r}"


def _hint(key: str) -> str:
    models: Sequence[type[BaseModel]] = (
        Recipe, CorpusSpec, SourceSpec, TeacherSpec, StudentSpec, StageSpec, LossWeights, PairsSpec,
        VisionSpec,
    )  # fmt: skip
    known = {name for model in models for name in model.model_fields}
    return did_you_mean(key, sorted(known))
