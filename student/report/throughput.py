"""The section of what training cost: texts a second, time spent waiting for data, memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from student.report import plots
from student.report.figures import Plot, Section, gallery
from student.report.markup import Content, joined, table, tag, words
from student.report.palette import series_of
from student.report.records import Report, Run, Stage
from student.report.wording import duration


def section(report: Report) -> Section | None:
    """A line for each stage of each run, as it ended or as it stands now; None without runs."""
    stages = [(run, stage) for run in report.runs for stage in run.stages]
    if not stages:
        return None
    drawn = _plots(report, stages)
    parts: list[Content] = [
        tag("p", "Data wait is the share of the time in which a step waited for its rows. Peak "
            "memory is the accelerator's where there is one, else the process's.", class_="lead"),
        gallery(drawn),
        _table(report, stages),
    ]  # fmt: skip
    return Section("throughput", "What it cost", "Cost", joined(parts), drawn)


def _last(stage: Stage, name: str) -> float | None:
    curve = stage.curves.get(name)
    value = stage.record.get("figures", {}).get(name)
    if isinstance(value, int | float):
        return float(value)
    return curve.values[-1] if curve and curve.values else None


def _plots(report: Report, stages: list[tuple[Run, Stage]]) -> list[Plot]:
    several = len(report.runs) > 1
    colours = series_of(run.name for run in report.runs)
    wanted: list[tuple[str, str, str, Callable[[float], float]]] = [
        ("samples_per_second", "Samples a second", "", lambda value: value),
        ("data_wait", "Data wait", " %", lambda value: 100 * value),
        ("peak_memory", "Peak memory", " GB", lambda value: value / 1e9),
    ]
    drawn = []
    for name, title, unit, scaled in wanted:
        found = [(r, s, v) for r, s in stages if (v := _last(s, name)) is not None]
        if not found:
            continue
        labels = [f"stage {s.number}{f' · {r.name}' if several else ''}" for r, s, _ in found]
        values = [scaled(value) for _, _, value in found]
        told = ", ".join(f"{n} {v:.3g}{unit}" for n, v in zip(labels, values, strict=True))
        drawn.append(
            Plot(
                name=f"cost-{name.replace('_', '-')}",
                title=title,
                words=f"{told}.",
                draw=partial(
                    plots.bars,
                    labels=labels,
                    values=values,
                    colours=[colours[run.name] for run, _, _ in found],
                    unit=unit,
                ),
                size=(340.0, 34.0 + 30.0 * max(len(found), 2)),
            )
        )
    return drawn


def _table(report: Report, stages: list[tuple[Run, Stage]]) -> Content:
    groups: list[tuple[Content, list[list[Content]]]] = []
    for run in report.runs:
        rows = [_row(stage) for owner, stage in stages if owner is run]
        groups.append((words(run.name) if len(report.runs) > 1 else None, rows))
    columns = ["stage", "steps", "batch", "time", "samples/s", "data wait", "peak memory", "ran on"]
    return table("Throughput of each stage", columns, groups, wordy=[7])


def _row(stage: Stage) -> list[Content]:
    figures: dict[str, Any] = stage.record.get("figures", {})
    settings: dict[str, Any] = stage.record.get("stage", {})
    done = stage.curves["loss"].steps[-1] if "loss" in stage.curves else None
    steps = figures.get("steps", done)
    speed, wait, memory = (
        _last(stage, name) for name in ("samples_per_second", "data_wait", "peak_memory")
    )
    seconds = figures.get("seconds")
    machine = [
        f"{figures['processes']} × {figures['device']}" if "processes" in figures else "",
        figures.get("precision", ""),
        figures.get("engine", "") if figures.get("processes", 1) > 1 else "",
        f"reads {figures['inputs']}" if "inputs" in figures else "",
    ]
    return [
        f"{stage.number}" if stage.finished else f"{stage.number} (unfinished)",
        None if steps is None else f"{steps:,}",
        settings.get("batch_size"),
        None if seconds is None else duration(seconds),
        None if speed is None else f"{speed:,.4g}" if speed < 1000 else f"{speed:,.0f}",
        None if wait is None else f"{wait:.1%}",
        None if memory is None else f"{memory / 1e9:.3g} GB",
        words(", ".join(part for part in machine if part)),
    ]
