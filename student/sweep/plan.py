"""Which stage runs a sweep needs, and which arms share them. No torch.

A stage run has a key: the digest of all that decides its outcome, the key of the stage run that it
starts from included. Equal keys are one training, whichever arms ask for it, and a finished one is
found again by its key, whatever the sweep file has become since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash
from pydantic import ValidationError

from student.evaluation.asymmetric import ALL_TEACHERS
from student.run import FRESH, StageRun
from student.spec import StudentSpec
from student.stage_checks import check
from student.stages import (
    FULL_HEAD,
    LEAST_TEXTS,
    StageError,
    StageSpec,
    did_you_mean,
    first_problem,
    head_of,
    stage,
    width_of,
    with_weights,
)
from student.sweep.spec import (
    ASYMMETRIC,
    FIGURES,
    Arm,
    Changes,
    Sweep,
    SweepError,
    stages_of_run,
)
from teacher_cache.reader import CacheReader


@dataclass(frozen=True, slots=True)
class Base:
    """What a recipe says of a student and of its stages, the latter as changes to the table."""

    student: StudentSpec
    stages: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """What planning asks of a cache. `widths` are the teachers', in the order of their blocks."""

    identity: str
    widths: Mapping[str, int]
    rows: int
    held_out: int

    @classmethod
    def of(cls, reader: CacheReader) -> Source:
        """The facts of a finished cache."""
        widths = {block.teacher: block.width for block in reader.blocks()}
        return cls(reader.identity, widths, len(reader.train_rows), len(reader.held_out_rows))


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage run: its key, that of the one it starts from, and the heads trained until then."""

    key: str
    run: StageRun
    after: str | None
    trained_before: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """The heads that have learned something when the stage is done."""
        spec = self.run.spec
        return tuple(dict.fromkeys([*self.trained_before, *spec.heads, *spec.closed_form]))


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep laid out: every stage run once, after the one it starts from."""

    sweep: Sweep
    source: Source
    out: Path
    arms: tuple[Arm, ...]
    stages: dict[str, PlannedStage] = field(default_factory=dict)
    ends: dict[str, dict[int, str]] = field(default_factory=dict)
    """By arm, by seed: the key of the last stage."""

    def chain(self, key: str) -> list[str]:
        """The stage runs that lead to one, itself last."""
        keys = [key]
        while (after := self.stages[keys[-1]].after) is not None:
            keys.append(after)
        return keys[::-1]

    def chains(self, arm: str) -> list[str]:
        """Every stage run that an arm needs, over all seeds."""
        return [key for end in self.ends[arm].values() for key in self.chain(end)]

    def arms_of(self, key: str) -> list[str]:
        """The arms that use a stage run."""
        return [arm.name for arm in self.arms if key in self.chains(arm.name)]

    def measured(self, key: str) -> tuple[str, ...]:
        """The vectors to measure after a stage run: what the arms that end there show."""
        return tuple(
            dict.fromkeys(
                vector
                for arm in self.arms
                if key in self.ends[arm.name].values()
                for vector in self.vectors(arm, key).values()
            )
        )

    def vectors(self, arm: Arm, key: str) -> dict[str, str]:
        """The heads of the table that an arm has, and the vector that is measured as each."""
        trained = self.stages[key].trained
        heads = self.sweep.measure.heads or tuple(dict.fromkeys([*trained, *arm.in_place_of]))
        stand = {head: arm.in_place_of.get(head, head) for head in heads}
        return {
            head: vector
            for head, vector in stand.items()
            if vector in trained or head_of(vector)[0] in trained
        }


def plan(sweep: Sweep, base: Base, source: Source, out: Path, *, precision: str = "auto") -> Plan:
    """Lay a sweep out. Nothing is loaded, nothing is written.

    `precision` is what stages will be trained in; it is part of their keys.

    Raises:
        SweepError: an arm that changes what is not there or asks for a stage that cannot run, a
            cache without held-out rows, or something to measure that no arm has.
    """
    if source.held_out < LEAST_TEXTS:
        raise SweepError(
            "a sweep is measured on held-out rows, which the cache has not: set corpus.held_out in "
            "its recipe"
        )
    # Absolute, for workers that stand in other folders.
    made = Plan(sweep, source, out.resolve(), sweep.every_arm())
    for seed in sweep.seeds:
        for arm in made.arms:
            made.ends.setdefault(arm.name, {})[seed] = _lay_out(made, arm, base, seed, precision)
    _check_measured(made)
    return made


def _lay_out(made: Plan, arm: Arm, base: Base, seed: int, precision: str) -> str:
    """Add an arm's stage runs for one seed to the plan; give the key of the last."""
    source = made.source
    changes = {**made.sweep.common, **arm.changes}
    try:
        numbers = stages_of_run(changes["run"])
        _check_used(arm, numbers)
        student = _student(base.student, changes)
        teachers = _teachers(changes.get("teachers"), source)
        specs = {number: _stage(number, base, changes) for number in numbers}
        specs = with_weights(specs, _weights(changes))
        width = sum(source.widths[teacher] for teacher in teachers)
        widths = {FULL_HEAD: width, **student.reduced_heads}
        for spec in specs.values():
            if spec.reads != "texts":
                raise SweepError("a sweep trains and measures on texts; stage 4 reads images")
            check(spec, widths, width, source.rows, tuple(source.widths))
        for vector in arm.in_place_of.values():
            width_of(vector, widths)
    except (StageError, SweepError) as error:
        raise SweepError(f"arm {arm.name!r}: {error}") from None
    before: PlannedStage | None = None
    for number, spec in specs.items():
        start = _start(number, before)
        run = StageRun(
            out=Path(), stage=number, spec=spec, student=student, identity=source.identity,
            teachers=teachers, seed=seed, init_from=start,
        )  # fmt: skip
        after = None if before is None else before.key
        key = _key(run, after, precision)
        planned = PlannedStage(
            key,
            replace(run, out=made.out / "runs" / key),
            after,
            () if before is None else before.trained,
        )
        before = made.stages.setdefault(key, planned)
    assert before is not None, "a run has stages"
    return before.key


def _start(number: int, before: PlannedStage | None) -> str | None:
    """`init_from` as the plain command would have it: None where that is its own rule."""
    if before is None:
        return None if number == 1 else FRESH
    return None if before.run.stage == number - 1 else str(before.run.folder)


def _key(run: StageRun, after: str | None, precision: str) -> str:
    facts = {**run.facts(), "number": run.stage, "init_from": after, "precision": precision}
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _check_used(arm: Arm, numbers: Sequence[int]) -> None:
    for path in arm.changes:
        first, _, rest = path.partition(".")
        number = rest.partition(".")[0]
        if first == "stages" and number not in map(str, numbers):
            raise SweepError(f"{path} changes nothing: the arm runs {', '.join(map(str, numbers))}")


def _student(base: StudentSpec, changes: Changes) -> StudentSpec:
    values = base.text_side.model_dump()
    for path, value in changes.items():
        group, _, name = path.partition(".")
        if group == "student":
            if name not in values:
                raise SweepError(f"a student has no field {name!r}{did_you_mean(name, values)}")
            values[name] = value
    try:
        return StudentSpec.model_validate(values).text_side
    except ValidationError as error:
        raise SweepError(f"student.{first_problem(error)}") from None


def _teachers(asked: Any, source: Source) -> tuple[str, ...]:
    known = tuple(source.widths)
    if asked is None:
        return known
    listed = isinstance(asked, list | tuple) and all(isinstance(name, str) for name in asked)
    if not listed or not asked or len(set(asked)) < len(asked):
        raise SweepError(f"teachers is a list of different names, found {asked!r}")
    for name in asked:
        _check_teacher(name, known)
    return tuple(asked)


def _check_teacher(name: Any, known: Sequence[str]) -> None:
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise SweepError(f"the cache has no teacher {name!r}; it has {', '.join(known)}{hint}")


def _stage(number: int, base: Base, changes: Changes) -> StageSpec:
    """A row of the table of stages, the recipe's changes over it, and the sweep's over these."""
    own: dict[str, Any] = deepcopy(dict(base.stages.get(number, {})))
    for path, value in changes.items():
        group, *rest = path.split(".")
        if group != "stages" or rest[0] != str(number):
            continue
        if rest[1] == "heads":
            own.setdefault("heads", {}).setdefault(rest[2], {})[rest[3]] = value
        else:
            own[rest[1]] = value
    return stage(number, own)


def _weights(changes: Changes) -> Changes:
    """The changes that every stage and head share, by the loss."""
    prefix = "weights."
    found = {path: value for path, value in changes.items() if path.startswith(prefix)}
    return {path.removeprefix(prefix): value for path, value in found.items()}


def _check_measured(made: Plan) -> None:
    measure = made.sweep.measure
    for name in measure.teachers or ():
        _check_teacher(name, (*made.source.widths, ALL_TEACHERS))
    known = (*FIGURES, *(ASYMMETRIC + name for name in FIGURES if name.startswith("recall")))
    for name in measure.figures or ():
        if name not in known:
            raise SweepError(f"measure.figures names {name!r}; there is {', '.join(known)}")
    shown: set[str] = set()
    for arm in made.arms:
        of_arm = {head for key in made.ends[arm.name].values() for head in made.vectors(arm, key)}
        if not of_arm:
            raise SweepError(
                f"arm {arm.name!r} trains none of measure.heads "
                f"({', '.join(measure.heads or ())}); say with in_place_of what is measured instead"
            )
        shown |= of_arm
    for head in measure.heads or ():
        if head not in shown:
            raise SweepError(f"measure.heads names {head!r}, which no arm trains")
