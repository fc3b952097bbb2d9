"""What came of a sweep: figures by arm with their spread over seeds, as data, CSV and a table.

No torch: what is read are the evaluations that stage runs left.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from student.durable import replace_text
from student.run import EVALUATION_FILE
from student.spec import INIT, POOLED
from student.sweep.plan import Plan, PlannedStage
from student.sweep.spec import ASYMMETRIC, Arm, SweepError
from student.sweep.statistics import SIGNIFICANT, compare

RESULTS_FILE = "results.json"
CSV_FILE = "results.csv"

_UNTOUCHED = (INIT, POOLED)
"""Vectors that no head gives; the tables leave them out."""

Cell = tuple[str, str, str]
"""Vector, teacher, measure."""


def evaluation(planned: PlannedStage, vectors: Sequence[str]) -> dict[str, Any] | None:
    """What was measured after a stage run, None where not all these vectors were."""
    try:
        found: dict[str, Any] = json.loads((planned.run.folder / EVALUATION_FILE).read_text())
    except (OSError, ValueError):
        return None
    known = found.get("retention") if isinstance(found, dict) else None
    if not isinstance(known, dict) or found.get("cache") != planned.run.identity:
        return None
    return found if set(vectors) <= set(known) else None


def results(plan: Plan, problems: Mapping[str, str]) -> dict[str, Any]:
    """What is known of every arm, as plain data. `problems` say, by stage run, what went wrong.

    An arm's `figures` are by vector, teacher and measure, over the seeds that came through;
    `problems` by seed are there where one did not. Paths are seen from the sweep's folder.
    """
    values: dict[Cell, dict[str, dict[int, float]]] = {}
    runs: dict[str, dict[str, str]] = {}
    failed: dict[str, dict[str, str]] = {}
    for arm in plan.arms:
        runs[arm.name], failed[arm.name] = {}, {}
        for seed, key in plan.ends[arm.name].items():
            found = None
            if key in problems:
                failed[arm.name][str(seed)] = problems[key]
            else:
                found = evaluation(plan.stages[key], plan.measured(key))
            if found is None:
                continue
            runs[arm.name][str(seed)] = f"runs/{key}"
            for cell, value in _cells(plan, arm, key, found):
                values.setdefault(cell, {}).setdefault(arm.name, {})[seed] = value
    figures: dict[str, dict[str, Any]] = {arm.name: {} for arm in plan.arms}
    for (vector, teacher, measure), by_arm in values.items():
        # What an earlier version measured under other names, in some runs of an arm, is left out.
        whole = {name: found for name, found in by_arm.items() if len(found) == len(runs[name])}
        for name, compared in compare(whole, plan.sweep.baseline).items():
            of_vector = figures[name].setdefault(vector, {})
            of_vector.setdefault(teacher, {})[measure] = compared
    return {
        "sweep": plan.sweep.name,
        "question": plan.sweep.question,
        "cache": plan.source.identity,
        "baseline": plan.sweep.baseline,
        "seeds": list(plan.sweep.seeds),
        "rows": plan.source.held_out,
        "arms": [
            {
                "arm": arm.name,
                "settings": arm.changes,
                "runs": runs[arm.name],
                **({"problems": failed[arm.name]} if failed[arm.name] else {}),
                "figures": figures[arm.name],
            }
            for arm in plan.arms
        ],
    }


def _cells(
    plan: Plan, arm: Arm, key: str, found: Mapping[str, Any]
) -> Iterator[tuple[Cell, float]]:
    """The figures of an arm's evaluation under the names of the table."""
    known = found["retention"]
    untouched = {name: name for name in _UNTOUCHED if name in known}
    for head, vector in {**untouched, **plan.vectors(arm, key)}.items():
        for prefix, part in (("", "retention"), (ASYMMETRIC, "asymmetric")):
            for teacher, figures in found.get(part, {}).get(vector, {}).items():
                for measure, value in figures.items():
                    if value is not None:
                        yield (head, teacher, f"{prefix}{measure}"), float(value)


def check_folder(plan: Plan) -> None:
    """Refuse a folder that holds the results of another sweep.

    Raises:
        SweepError: it does.
    """
    path = plan.out / RESULTS_FILE
    try:
        name = json.loads(path.read_text())["sweep"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{path} is not a sweep's results: {error!r}; give another --out"
        ) from None
    if name != plan.sweep.name:
        raise SweepError(
            f"{plan.out} holds the sweep {name!r}, this one is {plan.sweep.name!r}; give another "
            "--out"
        )


def write(found: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `results.json` and `results.csv`, the same figures a line each; give their paths."""
    paths = out / RESULTS_FILE, out / CSV_FILE
    replace_text(paths[0], json.dumps(found, indent=1) + "\n")
    replace_text(paths[1], as_csv(found))
    return paths


def as_csv(found: Mapping[str, Any]) -> str:
    """A line for each arm, vector, teacher and measure, with the value of every seed."""
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    seeds = [str(seed) for seed in found["seeds"]]
    facts = ("mean", "sd", "difference", "p", "significant")
    names = ("arm", "vector", "teacher", "measure", *facts, *(f"seed {seed}" for seed in seeds))
    lines.writerow(names)
    for arm in found["arms"]:
        for vector, teachers in arm["figures"].items():
            for teacher, measures in teachers.items():
                for measure, figure in measures.items():
                    by_seed = dict(zip(arm["runs"], figure["values"], strict=True))
                    lines.writerow(
                        [arm["arm"], vector, teacher, measure, *(figure[fact] for fact in facts)]
                        + [by_seed.get(seed) for seed in seeds]
                    )
    return stream.getvalue()


def tables(
    plan: Plan, found: Mapping[str, Any]
) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each vector and teacher that the sweep shows: a title, columns, a row for each arm."""
    shown = plan.sweep.measure
    seen: dict[tuple[str, str], dict[str, None]] = {}
    for arm in found["arms"]:
        for vector, teachers in arm["figures"].items():
            for teacher, measures in teachers.items():
                seen.setdefault((vector, teacher), {}).update(dict.fromkeys(measures))
    for vector in shown.heads or dict.fromkeys(v for v, _ in seen if v not in _UNTOUCHED):
        for teacher in shown.teachers or [t for v, t in seen if v == vector]:
            columns = shown.figures or [
                measure
                for measure in seen.get((vector, teacher), {})
                if not measure.startswith(ASYMMETRIC)
            ]
            rows = []
            for arm in found["arms"]:
                figures = arm["figures"].get(vector, {}).get(teacher, {})
                cells = [_spelled(figures.get(measure)) for measure in columns]
                rows.append([_titled(arm, found), *cells])
            yield f"{vector}, {teacher}", ["arm", *columns], rows


def _titled(arm: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name = f"{arm['arm']} (baseline)" if arm["arm"] == found["baseline"] else str(arm["arm"])
    if "problems" in arm:
        name += f" ({len(arm['runs'])} of {len(found['seeds'])} seeds)"
    return name


def _spelled(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    spread = "" if figure["sd"] is None else f"±{figure['sd']:.4f}"
    return f"{figure['mean']:.4f}{spread}{'*' if figure['significant'] else ' '}"


def legend(found: Mapping[str, Any]) -> str:
    """What the marks of the tables mean, in a line."""
    seeds = len(found["seeds"])
    if seeds < 2:
        return "one seed: no standard deviation and no p; give seeds = [0, 1, 2] to compare arms"
    return (
        f"mean ± standard deviation over {seeds} seeds; * differs from {found['baseline']!r}: "
        f"p < {SIGNIFICANT} by a t-test paired by seed, corrected over the other arms (Holm)"
    )
