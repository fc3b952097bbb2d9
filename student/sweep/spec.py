"""A sweep file: a question, a base recipe, arms that change it, seeds, what is measured. No torch.

An arm changes fields of the base recipe, each named by its dotted path: `weights.relative`,
`stages.2.steps`, `stages.3.heads.fc2.target`, `student.layers`, `teachers`, `run`. Here a set of
changes is a flat table, from such a path to its value.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from student.stages import did_you_mean

Changes = dict[str, Any]
"""Dotted path → value."""

_DEPTHS = {"run": 1, "teachers": 1, "weights": 2, "student": 2, "stages": 3}
"""What may be changed, and how many names lead to a field of it; a head's fields lie two deeper."""

FIGURES = ("cosine", "spearman", "pair_order", "recall@1", "recall@10")
"""What an evaluation has of a vector and a teacher; recall also of asymmetric use."""

ASYMMETRIC = "asymmetric "
"""Before a measure's name: the student's vectors against the teacher's own."""

_LONGEST_NAME = 200
"""Bytes of an arm's folder: file systems take 255."""

Head = Annotated[str, Field(min_length=1)]


class SweepError(Exception):
    """A sweep that cannot be run as asked: one line that says what, where, and what would do."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One variant of the base recipe. `in_place_of` names, for a head of the table, the vector that
    is measured as that head in this arm."""

    name: str
    changes: Changes = field(default_factory=dict)
    in_place_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The arm's name as that of a folder."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "-"


class ArmSpec(BaseModel):
    """An arm as a file spells it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)] = Field(description="as it stands in the table")
    change: dict[str, Any] = Field(
        default_factory=dict, description="fields of the recipe by dotted path, without quotes"
    )
    in_place_of: dict[Head, Head] = Field(
        default_factory=dict,
        description='what is measured as a head of the table: { fc2 = "fc1[:1024]" }',
    )


class Measure(BaseModel):
    """What the table shows. `results.json` has every vector that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[Head, ...] | None = Field(
        None, description="heads, or first columns of them; all that an arm trained by default"
    )
    teachers: tuple[str, ...] | None = Field(
        None, description='against whom: teachers, or "all teachers"; each and all by default'
    )
    figures: tuple[str, ...] | None = Field(
        None,
        description="which, by their names in an evaluation; all but the asymmetric by default",
    )


class Sweep(BaseModel):
    """A sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", description="the file's own by default")
    question: Annotated[str, Field(min_length=1)] = Field(description="what the sweep is to answer")
    recipe: str | None = Field(
        None, description="the base recipe, seen from this file; the paper's without one"
    )
    run: Any = Field((1, 2, 3), description="the stages of an arm, each from the one before it")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="each arm is trained once with every seed"
    )
    baseline: str = Field(description="the arm that the others are compared with")
    change: dict[str, Any] = Field(
        default_factory=dict, description="changes of every arm, the baseline's too"
    )
    arms: tuple[ArmSpec, ...] = Field((), description="arms, one by one")
    grid: dict[str, Any] = Field(
        default_factory=dict,
        description="an arm for each combination: dotted path = list of values",
    )
    measure: Measure = Field(default_factory=Measure, description="what the table shows")

    @property
    def common(self) -> Changes:
        """The changes of every arm."""
        return {"run": self.run, **flat(self.change, "change")}

    def every_arm(self) -> tuple[Arm, ...]:
        """The arms in the order of the table: those written one by one, then the grid's.

        Raises:
            SweepError: two arms of one name, a name too long for a folder, no arm, a change that
                leads nowhere.
        """
        arms = [
            Arm(arm.name, flat(arm.change, f"arm {arm.name!r}"), arm.in_place_of)
            for arm in self.arms
        ]
        arms += _grid(self.grid)
        if not arms:
            raise SweepError("a sweep needs arms: give [[arms]] with a name each, or a [grid]")
        names: dict[str, str] = {}
        for arm in arms:
            if len(arm.folder.encode()) > _LONGEST_NAME:
                raise SweepError(f"arm {arm.name[:40]!r}…: its name is too long for a folder's")
            other = names.setdefault(arm.folder.lower(), arm.name)
            if other != arm.name or sum(each.name == arm.name for each in arms) > 1:
                raise SweepError(f"two arms are named {other!r} and {arm.name!r}: give other names")
        if self.baseline not in [arm.name for arm in arms]:
            known = ", ".join(repr(arm.name) for arm in arms)
            raise SweepError(f"the baseline {self.baseline!r} is none of the arms: {known}")
        return tuple(arms)


def load(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        SweepError: no such file, broken TOML, an unknown key (with the nearest known one), a bad
            value, or arms that do not go together.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SweepError(f"there is no sweep {path}; see the folder recipes/sweeps/") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path} is not a readable TOML file: {error}") from None
    try:
        sweep = Sweep.model_validate({"name": path.stem, **values})
        if len(set(sweep.seeds)) < len(sweep.seeds):
            raise SweepError(f"a seed stands twice in {list(sweep.seeds)}")
        stages_of_run(sweep.run)
        flat(sweep.change, "change")
        sweep.every_arm()
    except ValidationError as error:
        raise SweepError(f"{path}: {_in_words(error)}") from None
    except SweepError as error:
        raise SweepError(f"{path}: {error}") from None
    return sweep


def stages_of_run(value: Any) -> tuple[int, ...]:
    """The stages of a run, in ascending order.

    Raises:
        SweepError: anything else.
    """
    numbers = value if isinstance(value, list | tuple) else ()
    whole = all(isinstance(number, int) for number in numbers)
    if not numbers or not whole or list(numbers) != sorted(set(numbers)):
        raise SweepError(f"run is a list of stages in ascending order, like [1, 2, 3]: {value!r}")
    return tuple(numbers)


def flat(tree: Mapping[str, Any], where: str) -> Changes:
    """Nested tables as dotted paths, down to the fields of a recipe and no further.

    Raises:
        SweepError: a path that leads to no field. `where` says in whose changes.
    """
    return dict(_fields(tree, (), where))


def _fields(
    tree: Mapping[str, Any], above: tuple[str, ...], where: str
) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = (*above, name)
        dotted = ".".join(path)
        if not above and name not in _DEPTHS:
            raise SweepError(f"{where}: {_unknown(name)}")
        head = len(path) > 2 and path[0] == "stages" and path[2] == "heads"
        if len(path) == _DEPTHS[path[0]] + (2 if head else 0):
            yield dotted, value
        elif isinstance(value, Mapping):
            yield from _fields(value, path, where)
        else:
            raise SweepError(f"{where}: {dotted} is no field but a table: expected {dotted}.FIELD")


def _unknown(name: str) -> str:
    if name == "seed":
        return "seeds are not changed by an arm: give seeds = [0, 1, 2] at the top"
    if name.partition(".")[0] in _DEPTHS:
        return f"write {name} without quotes: a dotted path is a path in TOML too"
    there = ", ".join(_DEPTHS)
    return f"there is no {name!r} to change; there is {there}{did_you_mean(name, _DEPTHS)}"


def _grid(tree: Mapping[str, Any]) -> list[Arm]:
    axes = flat(tree, "grid")
    if not axes:
        return []
    for path, values in axes.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f"grid: {path} is a list of values to try, found {values!r}")
    short = _short(list(axes))
    return [
        Arm(
            ", ".join(f"{short[path]}={_spelled(value)}" for path, value in changes.items()),
            changes,
        )
        for values in product(*axes.values())
        for changes in [dict(zip(axes, values, strict=True))]
    ]


def _short(paths: Sequence[str]) -> dict[str, str]:
    """By path: its shortest end that no other path has."""
    ends = {
        path: [path.split(".", i)[-1] for i in range(path.count("."), -1, -1)] for path in paths
    }
    return {
        path: next(end for end in ends[path] if sum(end in others for others in ends.values()) == 1)
        for path in paths
    }


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_spelled, value)) or "none"
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{_spelled(part)}" for key, part in value.items()) or "none"
    return str(value)


def _in_words(error: ValidationError) -> str:
    # A key that is misspelled is missing as well: the first is to be told.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = {name for model in (Sweep, ArmSpec, Measure) for name in model.model_fields}
        return f"unknown key {where}{did_you_mean(str(problem['loc'][-1]), sorted(known))}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {problem['msg']}, found {problem['input']!r}"
