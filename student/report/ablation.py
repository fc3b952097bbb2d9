"""The sections of sweeps: every arm with its error bars, and what differs from the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from student.evaluation.asymmetric import ALL_TEACHERS
from student.report import plots
from student.report.figures import Key, Plot, Section, gallery
from student.report.markup import Content, Html, joined, table, tag, words
from student.report.palette import ink
from student.report.records import Arm, Statistic, Sweep
from student.report.wording import file_name, head_title, ordered, title
from student.spec import INIT

_KEYS = (
    Key("mean ± one standard deviation", ink("series-1"), "solid", "h"),
    Key("★ differs significantly from the baseline", ink("series-2"), "solid", "D"),
    Key("baseline", ink("quiet"), "dashed"),
)
_DRAWN = ("spearman", "recall@10", "cosine")


def section(sweep: Sweep, number: int) -> Section:
    """One sweep: its question, a plot of each measure, tables of all vectors and teachers."""
    vector, teacher = _foremost(sweep)
    drawn = _plots(sweep, number, vector, teacher)
    name = sweep.sweep or sweep.path.name
    seeds = len(sweep.seeds)
    parts: list[Content] = [
        tag("p", words(sweep.question), class_="question") if sweep.question else None,
        tag("p", f"{len(sweep.arms)} arms, {seeds} {'seed' if seeds == 1 else 'seeds'} each"
            f"{f', measured on {sweep.rows:,} held-out texts' if sweep.rows else ''}. Drawn is "
            f"{head_title(vector)} against {teacher}; small dots are single seeds, the band is "
            "the baseline's own deviation. Tables give mean ± standard deviation over seeds; "
            "below, the difference from the baseline and its p, of a t-test paired by seed, "
            "corrected for the number of arms (Holm).", class_="lead"),
        gallery(drawn),
        _table(sweep, vector, teacher),
        _others(sweep, vector, teacher),
    ]  # fmt: skip
    return Section(f"sweep-{number}", f"Ablation: {name}", "Ablation", joined(parts), drawn)


def significant(sweep: Sweep) -> list[str]:
    """The arms that differ significantly from the baseline in any measure of what is foremost."""
    vector, teacher = _foremost(sweep)
    return [
        arm.arm
        for arm in sweep.arms
        if any(s.significant for s in arm.figures.get(vector, {}).get(teacher, {}).values())
    ]


def _foremost(sweep: Sweep) -> tuple[str, str]:
    """What is drawn: FC1 against all teachers together, or what there is instead."""
    vectors = list(dict.fromkeys(v for arm in sweep.arms for v in arm.figures))
    vectors.sort(key=lambda name: (name != "fc1", name == INIT))
    vector = vectors[0] if vectors else "fc1"
    teachers = dict.fromkeys(t for arm in sweep.arms for t in arm.figures.get(vector, {}))
    return vector, sorted(teachers, key=lambda name: name != ALL_TEACHERS)[0] if teachers else ""


def _statistic(arm: Arm, vector: str, teacher: str, measure: str) -> Statistic | None:
    return arm.figures.get(vector, {}).get(teacher, {}).get(measure)


def _measures(sweep: Sweep, vector: str, teacher: str) -> list[str]:
    return ordered(
        measure for arm in sweep.arms for measure in arm.figures.get(vector, {}).get(teacher, {})
    )


def _plots(sweep: Sweep, number: int, vector: str, teacher: str) -> list[Plot]:
    drawn = []
    measures = _measures(sweep, vector, teacher)
    for measure in [m for m in _DRAWN if m in measures] or measures[:2]:
        found = [
            (arm.arm, each)
            for arm in sweep.arms
            if (each := _statistic(arm, vector, teacher, measure)) is not None
        ]
        baseline = next((each for name, each in found if name == sweep.baseline), None)
        told = "; ".join(f"{name} {_mean(each)}{_mark(each)}" for name, each in found)
        drawn.append(
            Plot(
                name=f"sweep-{number}-{file_name(measure)}",
                title=f"{title(measure)}: {head_title(vector)}, {teacher}",
                words=f"{told}. The baseline is {sweep.baseline}.",
                draw=partial(plots.arms, found=found, baseline=baseline),
                keys=_KEYS,
                size=(340.0, 46.0 + 40.0 * len(found)),
            )
        )
    return drawn


def _mark(each: Statistic) -> str:
    return " ★" if each.significant else ""


def _mean(each: Statistic) -> str:
    return f"{each.mean:.3f}" + ("" if each.sd is None else f" ± {each.sd:.3f}")


def _table(sweep: Sweep, vector: str, teacher: str) -> Html:
    measures = _measures(sweep, vector, teacher)
    rows = [
        [_arm(arm, sweep.baseline)]
        + [_cell(_statistic(arm, vector, teacher, measure)) for measure in measures]
        for arm in sweep.arms
    ]
    caption = joined([f"{head_title(vector)} against ", words(teacher)])
    return table(caption, ["arm", *map(title, measures)], [(None, rows)])


def _arm(arm: Arm, baseline: str) -> Content:
    settings = ", ".join(f"{key} = {json.dumps(v)}" for key, v in arm.settings.items())
    role = " (baseline)" if arm.arm == baseline != "baseline" else ""
    notes = [settings, *(f"seed {seed} failed: {why}" for seed, why in arm.problems.items())]
    told = [tag("small", tag("br"), words(note, limit=300)) for note in notes if note]
    return joined([words(arm.arm), role, *told])


def _cell(each: Statistic | None) -> Content:
    if each is None:
        return None
    below = None
    if each.difference is not None:
        chance = "" if each.p is None else f", p = {each.p:.2g}"
        below = tag("small", tag("br"), f"{each.difference:+.3f}{chance}")
    mark = None
    if each.significant:
        star = tag("span", " ★", aria_hidden="true")
        mark = joined([star, tag("span", " significant", class_="hidden")])
    cell = joined([_mean(each), mark, below])
    return tag("strong", cell) if each.significant else cell


def _others(sweep: Sweep, vector: str, teacher: str) -> Content:
    """The same table for every other vector and teacher, folded away."""
    pairs = dict.fromkeys((v, t) for arm in sweep.arms for v, by in arm.figures.items() for t in by)
    rest: Sequence[tuple[str, str]] = [pair for pair in pairs if pair != (vector, teacher)]
    if not rest:
        return None
    tables = [_table(sweep, *pair) for pair in rest]
    return tag("details", tag("summary", "Other heads and teachers"), *tables)
