"""The section of what students keep of their teachers: against width, as a table, on tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from student.evaluation.meanings import MEANINGS
from student.report import plots
from student.report.figures import Key, Plot, Section, gallery
from student.report.markup import Content, Html, command, joined, table, tag, words
from student.report.palette import ink, series, series_of
from student.report.records import Evaluation, Figures, Measured, Report
from student.report.tasks import tasks
from student.report.wording import figure, file_name, head_title, ordered, title
from student.spec import INIT, POOLED

_AGAINST_WIDTH = ("spearman", "recall@10", "pair_order")
_OF_SEVERAL_RUNS = 2
"""Measures that are drawn where several runs make a panel for each teacher."""

_FORMS = {
    "head": Key("head", ink("quiet"), "solid", "o"),
    "[": Key("first columns of FC1", ink("quiet"), "dashed", "h"),
    INIT: Key("untrained, pooled", ink("quiet"), "dotted", "x"),
    POOLED: Key("trained, pooled", ink("quiet"), "none", "D"),
}
"""What each form of mark is, by the vectors that have it."""


def section(report: Report) -> Section | None:
    """Retention, asymmetric use and tasks of the runs that were measured; None without runs."""
    if not report.runs:
        return None
    measured: list[Measured] = []
    parts: list[Content] = []
    for run in report.runs:
        stage = run.evaluated
        if stage is None or stage.evaluation is None:
            line = command(f"jasper-student evaluate {run.path}")
            missing = joined([words(run.name), " was not measured yet. ", line])
            parts.append(tag("p", missing, " does it.", class_="missing"))
        else:
            measured.append((run, stage.evaluation))
    drawn = against_width(measured, series_of(run.name for run in report.runs))
    rows = " and ".join(dict.fromkeys(f"{each.rows:,}" for _, each in measured if each.rows))
    if rows:
        parts += [
            tag("p", f"On {rows} held-out texts that no student was trained on. The dotted line is "
                "what the student had before any training. Against one of several teachers FC1 "
                "stands with that teacher's columns.", class_="lead"),
            gallery(drawn), _retention(measured), _meanings(measured), _asymmetric(measured),
        ]  # fmt: skip
    parts.append(tasks(measured))
    return Section("kept", "What the student kept", "Retention", joined(parts), drawn)


def against_width(measured: Sequence[Measured], colours: Mapping[str, str]) -> list[Plot]:
    """A plot of each measure: with one run all teachers in one, with several a plot for each.

    `colours` are those of the runs.
    """
    found = ordered(m for _, each in measured for m in _measures(each.retention))
    shown = [m for m in _AGAINST_WIDTH if m in found]
    names = {
        width: head_title(vector)
        for _, each in measured
        for vector, width in each.widths.items()
        if "[" not in vector
    }
    if len(measured) == 1:
        (_, evaluation) = measured[0]
        keys = [Key(t, series(i), "solid") for i, t in enumerate(evaluation.teachers)]
        return [
            Plot(
                name=f"retention-{file_name(measure)}",
                title=f"{title(measure)} against width",
                words=_in_words(evaluation, evaluation.teachers[0], measure),
                draw=partial(
                    plots.against_width,
                    series=[
                        _series(evaluation, teacher, measure, key.colour)
                        for teacher, key in zip(evaluation.teachers, keys, strict=True)
                    ],
                    names=names,
                ),
                keys=(*keys, *_forms(measured)),
            )
            for measure in shown
        ]
    teachers = list(dict.fromkeys(t for _, each in measured for t in each.teachers))
    keys = [Key(run.name, colours[run.name]) for run, _ in measured]
    return [
        Plot(
            name=f"retention-{file_name(measure)}-{place}",
            title=f"{title(measure)}: {teacher}",
            words=" ".join(_in_words(each, teacher, measure) for _, each in measured),
            draw=partial(
                plots.against_width,
                series=[
                    _series(each, teacher, measure, key.colour)
                    for (_, each), key in zip(measured, keys, strict=True)
                ],
                names=names,
            ),
            keys=(*keys, *_forms(measured)),
        )
        for measure in shown[:_OF_SEVERAL_RUNS]
        for place, teacher in enumerate(teachers)
    ]


def _forms(measured: Sequence[Measured]) -> list[Key]:
    """The forms of mark that there are."""
    vectors = {vector for _, each in measured for vector in each.retention}
    prefixes = any(vector.startswith("fc1[") for vector in vectors)
    return [
        key
        for form, key in _FORMS.items()
        if form == "head" or form in vectors or (form == "[" and prefixes)
    ]


def _measures(figures: Figures) -> list[str]:
    return [name for by in figures.values() for each in by.values() for name in each]


def _series(each: Evaluation, teacher: str, measure: str, colour: str) -> plots.Widths:
    points = {
        vector: (each.widths[vector], value)
        for vector, by in each.retention.items()
        if vector in each.widths and (value := by.get(teacher, {}).get(measure)) is not None
    }
    return plots.Widths(
        colour,
        heads=[p for v, p in points.items() if v not in (INIT, POOLED) and "[" not in v],
        prefixes=[p for vector, p in points.items() if vector.startswith("fc1[")],
        start=points.get(INIT),
        pooled=points.get(POOLED),
    )


def _in_words(each: Evaluation, teacher: str, measure: str) -> str:
    told = [
        f"{head_title(vector)} ({each.widths.get(vector, 0):,} wide) {figure(value)}"
        for vector, by in each.retention.items()
        if (value := by.get(teacher, {}).get(measure)) is not None
    ]
    return f"{title(measure)} with {teacher}: {', '.join(told)}."


def _retention(measured: Sequence[Measured]) -> Html:
    found = ordered(m for _, each in measured for m in _measures(each.retention))
    teachers = list(dict.fromkeys(t for _, each in measured for t in each.teachers))
    return _by_teacher("Retention on held-out texts", measured, teachers, found, "retention")


def _asymmetric(measured: Sequence[Measured]) -> Content:
    """The student's queries against the teachers' own vectors."""
    found = ordered(m for _, each in measured for m in _measures(each.asymmetric))
    if not found:
        return None
    teachers = list(
        dict.fromkeys(t for _, each in measured for by in each.asymmetric.values() for t in by)
    )
    return joined(
        [
            tag("h3", "Asymmetric use"),
            tag("p", "The student's queries against the teachers' own vectors: an index that a "
                "teacher filled is searched without it."),
            _by_teacher("Asymmetric recall", measured, teachers, found, "asymmetric"),
        ]
    )  # fmt: skip


def _by_teacher(
    caption: str,
    measured: Sequence[Measured],
    teachers: Sequence[str],
    measures: Sequence[str],
    part: str,
) -> Html:
    """A table with a group for each teacher; the best of the trained vectors stand out."""
    several = len(measured) > 1
    vectors = list(dict.fromkeys(v for _, each in measured for v in getattr(each, part)))
    groups = []
    for teacher in teachers:
        lines = [
            (run, each, vector, by[teacher])
            for vector in vectors
            for run, each in measured
            if teacher in (by := getattr(each, part).get(vector, {}))
        ]
        trained = [figures for _, _, vector, figures in lines if vector != INIT]
        best = {m: _largest(figures.get(m) for figures in trained) for m in measures}
        rows = []
        for run, each, vector, figures in lines:
            cells = [_best(figures.get(m), None if vector == INIT else best[m]) for m in measures]
            rows.append(
                [
                    head_title(vector),
                    *([words(run.name)] if several else []),
                    f"{each.widths[vector]:,}" if vector in each.widths else None,
                    *cells,
                ]
            )
        groups.append((words(teacher), rows))
    columns = ["vector", *(["run"] if several else []), "width", *map(title, measures)]
    return table(caption, columns, groups, wordy=[1] if several else [])


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _best(value: float | None, best: float | None) -> Content:
    text = figure(value)
    return tag("strong", text) if value is not None and value == best else text


def _meanings(measured: Sequence[Measured]) -> Html:
    found = ordered(m for _, each in measured for m in _measures(each.retention))
    items = [
        part
        for measure in found
        if measure in MEANINGS
        for part in (tag("dt", title(measure)), tag("dd", MEANINGS[measure]))
    ]
    return tag("details", tag("summary", "What the measures mean"), tag("dl", *items))
