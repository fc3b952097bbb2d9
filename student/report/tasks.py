"""The scores on tasks: a table for each, the student's vectors beside the teachers' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from student.report.markup import Content, Html, joined, table, tag, words
from student.report.records import Measured, Task
from student.report.wording import figure, head_title

STUDENT = "student"

Row = tuple[str, str, str]
"""Of one line: the run (none of a teacher's), whose vectors, among whose documents."""


def tasks(measured: Sequence[Measured]) -> Content:
    """All tasks that any of the runs was measured on; None where there are none."""
    found = {task.task: task.kind for _, each in measured for task in each.tasks}
    if not found:
        return None
    several = len(measured) > 1
    return joined(
        [
            tag("h3", "Tasks"),
            tag("p", "Scores ± standard errors; small, as a share of the teachers' own on the same "
                "texts. Of several wordings of an instruction the first is shown.",
                class_="lead"),
            *(_table(measured, name, kind, several) for name, kind in found.items()),
            _wordings(measured, several),
        ]
    )  # fmt: skip


def _lines(measured: Sequence[Measured], name: str) -> dict[Row, list[Task]]:
    """The scores on a task, by line; of a teacher's vectors those that the first run has."""
    lines: dict[Row, list[Task]] = {}
    whose: dict[str, str] = {}
    for run, each in measured:
        for task in each.tasks:
            if task.task != name:
                continue
            if task.of != STUDENT:
                if whose.setdefault(task.of, run.name) == run.name:
                    lines.setdefault(("", task.of, ""), []).append(task)
            else:
                key = (run.name, head_title(task.vector), task.documents_of or "")
                lines.setdefault(key, []).append(task)
    return lines


def _table(measured: Sequence[Measured], name: str, kind: str, several: bool) -> Html:
    lines = _lines(measured, name)
    measures = list(dict.fromkeys(task.measure for found in lines.values() for task in found))
    rows: list[list[Content]] = []
    for (run, vector, documents), found in lines.items():
        scores: dict[str, Task] = {}
        for task in found:
            scores.setdefault(task.measure, task)
        title = words(vector)
        if documents:
            title = joined([title, tag("small", " among the documents of ", words(documents))])
        cells = [_score(scores.get(measure)) for measure in measures]
        rows.append([title, *([words(run) if run else "teacher"] if several else []), *cells])
    caption = joined([words(name), f" ({kind})" if kind else None])
    columns: list[Content] = ["vectors", *(["run"] if several else []), *map(words, measures)]
    return table(caption, columns, [(None, rows)], wordy=[1] if several else [])


def _score(task: Task | None) -> Content:
    if task is None:
        return None
    error = "" if task.standard_error is None else f" ± {task.standard_error:.3f}"
    share = None if task.share is None else tag("small", f" {task.share:.0%}")
    return joined([figure(task.score), error, share])


def _wordings(measured: Sequence[Measured], several: bool) -> Content:
    """How much scores hang on the words of an instruction."""
    rows = [
        [
            joined([words(run), ": ", words(vector)] if several else [words(vector)]),
            words(name),
            words(measure),
            str(len(scores)),
            f"{mean(scores):.3f} ± {stdev(scores):.3f}",
            figure(min(scores)),
            figure(max(scores)),
        ]
        for run, vector, name, measure, scores in _spreads(measured)
    ]
    if not rows:
        return None
    columns = ["vectors", "task", "measure", "wordings", "mean ± deviation", "least", "greatest"]
    inner = table("Scores under every wording", columns, [(None, rows)], wordy=[1, 2])
    return tag("details", tag("summary", "Under other wordings of the instruction"), inner)


def _spreads(measured: Sequence[Measured]) -> Iterator[tuple[str, str, str, str, list[float]]]:
    for name in dict.fromkeys(task.task for _, each in measured for task in each.tasks):
        for (run, vector, documents), found in _lines(measured, name).items():
            among = f" among the documents of {documents}" if documents else ""
            for measure in dict.fromkeys(task.measure for task in found):
                scores = [task.score for task in found if task.measure == measure]
                if run and len(scores) > 1:
                    yield run, f"{vector}{among}", name, measure, scores
