"""How the page begins: a title, what came of it in one paragraph, and the figures at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from student.evaluation.asymmetric import ALL_TEACHERS
from student.report.ablation import significant
from student.report.markup import Content, Html, joined, table, tag, words
from student.report.records import Evaluation, Report, Run, Sweep
from student.report.wording import duration, figure, head_title
from student.spec import INIT, POOLED
from student.stages import FULL_HEAD

_LONGEST = 60
"""Characters of a headline's names; more are counted instead."""


def title(report: Report) -> str:
    """The page's title: the runs' names, or the sweeps'."""
    return f"Distillation report: {', '.join(_names(report))}"


def opening(report: Report) -> Html:
    """Title, summary and figures at a glance."""
    single = len(report.runs) == 1
    sentences = _of_run(report.runs[0]) if single else _of_several(report.runs)
    sentences += [_of_sweep(sweep) for sweep in report.sweeps]
    return joined(
        [
            tag("h1", tag("small", "Distillation report"), *_listed(_names(report), ", ")),
            tag("p", *(joined([sentence, " "]) for sentence in sentences), class_="summary"),
            _tiles(report.runs[0]) if single else _side_by_side(report),
        ]
    )


def _names(report: Report) -> list[str]:
    names = [run.name for run in report.runs] or [s.sweep or s.path.name for s in report.sweeps]
    if len(names) > 1 and len(", ".join(names)) > _LONGEST:
        return [f"{len(names)} {'runs' if report.runs else 'sweeps'}"]
    return names


def _listed(names: Sequence[str], last: str = " and ") -> list[Content]:
    """Names one by one: none reaches into the next."""
    parts: list[Content] = []
    for place, name in enumerate(names):
        if place:
            parts.append(last if place == len(names) - 1 else ", ")
        parts.append(words(name, limit=120))
    return parts


def _of_run(run: Run) -> list[Content]:
    record = run.last.record
    teachers = record.get("teachers", [])
    sentences: list[Content] = [
        joined([
            tag("strong", words(run.name)), " learned from ", *_listed(teachers),
            f" in {_stages(run)} and {duration(_seconds(run))} of training, ",
            "with no teacher in memory.",
        ])
    ]  # fmt: skip
    stage = run.evaluated
    if stage is None or stage.evaluation is None:
        return [*sentences, "What it kept of them was not measured yet."]
    each = stage.evaluation
    told = _told(each, FULL_HEAD)
    if told:
        sentences.append(f"On {each.rows:,} texts that it never saw, {told}.")
    narrow = _narrowest(each)
    order = None if narrow is None else _value(each, narrow, "spearman")
    if narrow is not None and order is not None and narrow != FULL_HEAD:
        width = each.widths[narrow]
        sentences.append(
            f"{width:,} numbers a text ({head_title(narrow)}) still reach {order:.3f}."
        )
    return sentences


def _of_several(runs: Sequence[Run]) -> list[Content]:
    """How many there are, and which comes nearest to its teachers."""
    if not runs:
        return []
    scores = {
        run.name: score
        for run in runs
        if run.evaluated is not None
        and run.evaluated.evaluation is not None
        and (score := _value(run.evaluated.evaluation, FULL_HEAD, "spearman")) is not None
    }
    sentences: list[Content] = [f"{len(runs)} runs side by side."]
    if len(scores) > 1 and _alike(runs):
        best, second, *_ = sorted(scores, key=lambda name: -scores[name])
        sentences.append(
            joined(["FC1 of ", tag("strong", words(best)), " comes nearest to its teachers: a "
                    f"Spearman correlation of {scores[best]:.3f}, against {scores[second]:.3f} of ",
                    words(second), ", the next."])
        )  # fmt: skip
    return sentences


def _alike(runs: Sequence[Run]) -> bool:
    """Whether all have the same teachers on the same texts, so that one can be the nearest."""
    records = [run.last.record for run in runs]
    first = records[0]
    return all(r.get(key) == first.get(key) for r in records for key in ("cache", "teachers"))


def _stages(run: Run) -> str:
    done = sum(stage.finished for stage in run.stages)
    return "1 stage" if done == 1 else f"{done} stages"


def _seconds(run: Run) -> float:
    found = (stage.record.get("figures", {}).get("seconds", 0.0) for stage in run.stages)
    return float(sum(found))


def _told(each: Evaluation, vector: str) -> str:
    parts = []
    for measure, form in (
        ("spearman", "{name} orders pairs of texts as its teachers do with a Spearman correlation "
                     "of {now}{before}"),
        ("recall@10", "keeps {now} of each text's ten nearest neighbours{before}"),
    ):  # fmt: skip
        now, before = (_value(each, v, measure) for v in (vector, INIT))
        if now is None:
            continue
        shown = [f"{v:.0%}" if "@" in measure else f"{v:.3f}" for v in (now, before or 0.0)]
        was = "" if before is None else f" ({shown[1]} before training)"
        name = f"{head_title(vector)} ({each.widths.get(vector, 0):,} wide)"
        parts.append(form.format(name=name, now=shown[0], before=was))
    return " and ".join(parts)


def _value(each: Evaluation, vector: str, measure: str) -> float | None:
    """A measure against all teachers together, or the one there is."""
    by = each.retention.get(vector, {})
    teacher = ALL_TEACHERS if ALL_TEACHERS in by else next(iter(by), "")
    return by.get(teacher, {}).get(measure)


def _narrowest(each: Evaluation) -> str | None:
    none = (INIT, POOLED)
    heads = [v for v in each.retention if v not in none and "[" not in v and v in each.widths]
    return min(heads, key=lambda v: each.widths[v], default=None)


def _of_sweep(sweep: Sweep) -> Content:
    found = significant(sweep)
    name = tag("strong", words(sweep.sweep or sweep.path.name))
    which = f": {', '.join(found)}" if found else ""
    count = f"{len(found)} differ" if len(found) != 1 else "1 differs"
    return joined(
        ["The sweep ", name, f" compares {len(sweep.arms)} arms over {len(sweep.seeds)} "
         f"{'seed' if len(sweep.seeds) == 1 else 'seeds'}; {count} significantly from the baseline",
         words(which), "."]
    )  # fmt: skip


def _tiles(run: Run) -> Content:
    """The figures that one asks for first, each beside what it was before training."""
    tiles: list[Content] = []
    stage = run.evaluated
    if stage is not None and stage.evaluation is not None and stage.evaluation.teachers:
        each = stage.evaluation
        for measure, name, form in (
            ("spearman", f"Spearman with {each.teachers[0]}", ".3f"),
            ("recall@10", "of ten nearest neighbours kept", ".0%"),
            ("cosine", "mean cosine with the target", ".3f"),
        ):
            now, before = (_value(each, v, measure) for v in (FULL_HEAD, INIT))
            if now is not None:
                was = "" if before is None else f"{before:{form}} before training"
                tiles.append(_tile(f"{now:{form}}", name, was))
    last = run.last.record.get("figures", {})
    where = f"on {last.get('processes', 1)} × {last.get('device', '?')}"
    tiles.append(_tile(duration(_seconds(run)), f"of training, {_stages(run)}", where))
    return tag("div", *tiles, class_="tiles")


def _tile(value: str, name: str, note: str) -> Html:
    return tag(
        "p", tag("strong", value), " ", tag("span", name), " ", tag("small", note) if note else None
    )


def _side_by_side(report: Report) -> Content:
    """Several runs: the same figures, a row each."""
    if not report.runs:
        return None
    rows: list[list[Content]] = []
    for run in report.runs:
        each = run.evaluated.evaluation if run.evaluated is not None else None
        cells = [
            figure(None if each is None else _value(each, vector, measure))
            for vector, measure in (
                (INIT, "spearman"), (FULL_HEAD, "spearman"), (FULL_HEAD, "recall@10")
            )
        ]  # fmt: skip
        rows.append(
            [
                words(run.name),
                ", ".join(str(stage.number) for stage in run.stages if stage.finished),
                duration(_seconds(run)),
                *cells,
            ]
        )
    columns = [
        "run", "stages", "training", "Spearman, untrained", "Spearman, FC1", "Recall@10, FC1"
    ]  # fmt: skip
    return table(
        "The runs at a glance, each against all of its teachers", columns, [(None, rows)], wordy=[1]
    )
