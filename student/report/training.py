"""The section of how training went: losses with their parts, looks at held-out rows, rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from student.report.figures import Key, Plot, Section, gallery
from student.report.markup import Content, joined, tag, words
from student.report.palette import ink, series, series_of
from student.report.plots import DASHES, MOST_POINTS, Line, curves
from student.report.records import Report, Run, Stage
from student.report.wording import head_title
from student.stages import LOSSES

_PANELS = {
    "loss": "Loss",
    "probe.loss": "Loss, held out",
    **{loss: f"{loss.capitalize()} loss" for loss in LOSSES},
    "probe.order": "Spearman, held out",
    "probe.spearman": "Spearman, held out",
    "probe.cosine": "Cosine, held out",
    "learning_rate": "Learning rate",
}
"""The figures of the log that are drawn, without the head that they are of."""

_LOGARITHMIC = ("loss", "probe.loss", *LOSSES)
_SIZE = (270.0, 184.0)


def section(report: Report) -> Section | None:
    """Every stage that any run has begun, its runs drawn over each other; None without runs."""
    if not report.runs:
        return None
    colours = series_of(run.name for run in report.runs)
    numbers = sorted({stage.number for run in report.runs for stage in run.stages})
    parts: list[Content] = [
        tag("p", "Losses of heads are unweighted, of the training batches; the total is as the "
            "stage weighs them. “Held out” is on texts, or pairs, that are not trained on. Curves "
            f"of more than {MOST_POINTS} points show means of neighbouring ones.", class_="lead")
    ]  # fmt: skip
    drawn: list[Plot] = []
    for number in numbers:
        stages = [(run, s) for run in report.runs for s in run.stages if s.number == number]
        mine = of_stage(number, stages, colours)
        drawn += mine
        parts.append(tag("h3", f"Stage {number}", tag("small", " ", words(_purpose(stages)))))
        parts += [
            tag("p", words(run.name), " is not finished: the curves end where it stands now.",
                class_="missing")
            for run, stage in stages
            if not stage.finished
        ]  # fmt: skip
        parts.append(gallery(mine) if mine else tag("p", "No log was kept.", class_="missing"))
    return Section("training", "How training went", "Training", joined(parts), drawn)


def _purpose(stages: Sequence[tuple[Run, Stage]]) -> str:
    told = (str(s.record["stage"].get("purpose", "")) for _, s in stages if "stage" in s.record)
    return next(told, "")


def of_stage(
    number: int, stages: Sequence[tuple[Run, Stage]], colours: Mapping[str, str]
) -> list[Plot]:
    """The panels of one stage. One run: a colour for each head; several: `colours` of runs."""
    heads = list(dict.fromkeys(h for _, s in stages for name in s.curves if (h := _parts(name)[1])))
    several = len(stages) > 1
    found: dict[str, list[tuple[Line, str]]] = {}
    for run, stage in stages:
        for name, curve in stage.curves.items():
            panel, head = _parts(name)
            turn = heads.index(head) if head else 0
            if several:
                line = Line(curve, colours[run.name], DASHES[turn % len(DASHES)])
            else:
                line = Line(curve, series(turn) if head else ink("ink"))
            told = " ".join(part for part in (run.name * several, head_title(head)) if part)
            found.setdefault(panel, []).append((line, told))
    keys = _keys({run.name: colours[run.name] for run, _ in stages}, heads)
    return [_plot(number, panel, found[panel], keys) for panel in _PANELS if panel in found]


def _keys(runs: Mapping[str, str], heads: Sequence[str]) -> tuple[Key, ...]:
    titles = list(map(head_title, heads))
    if len(runs) == 1:
        return tuple(Key(title, series(turn)) for turn, title in enumerate(titles))
    lines = [Key(run, colour) for run, colour in runs.items()]
    dashes = [
        Key(title, ink("quiet"), DASHES[turn % len(DASHES)]) for turn, title in enumerate(titles)
    ]
    return (*lines, *(dashes if len(titles) > 1 else []))


def _plot(
    number: int, panel: str, found: Sequence[tuple[Line, str]], keys: tuple[Key, ...]
) -> Plot:
    ends = "; ".join(
        f"{told} from {line.curve.values[0]:.4g} to {line.curve.values[-1]:.4g}".strip()
        for line, told in found
    )
    lines = [line for line, _ in found]
    return Plot(
        name=f"stage-{number}-{panel.replace('.', '-').replace('_', '-')}",
        title=_PANELS[panel],
        words=f"Over the steps of stage {number}: {ends}.",
        draw=partial(curves, lines=lines, logarithmic=panel in _LOGARITHMIC),
        keys=keys,
        size=_SIZE,
    )


def _parts(name: str) -> tuple[str, str]:
    """The panel and the head of a figure in the log.

    `fc1.cosine` → ("cosine", "fc1"), `probe.fc1.order` → ("probe.order", "fc1"), `loss` →
    ("loss", ""). One of two targets of a head belongs to the head's name: `fc2.teachers`.
    """
    probe = "probe." if name.startswith("probe.") else ""
    head, _, kind = name.removeprefix(probe).rpartition(".")
    return f"{probe}{kind}", head
