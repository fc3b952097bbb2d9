"""One drawing function per kind of plot: plain data onto axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from student.report.palette import Dash, ink
from student.report.records import Curve, Density, Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

MOST_POINTS = 160
DASHES: Sequence[Dash] = ("solid", "dashed", "dashdot", "dotted")


@dataclass(frozen=True, slots=True)
class Line:
    """A curve and its look."""

    curve: Curve
    colour: str
    dash: Dash = "solid"


def curves(axes: Axes, lines: Sequence[Line], *, logarithmic: bool = False) -> None:
    """Figures over the steps of a stage; of long ones the means of equal parts.

    `logarithmic` where they are positive and span a decade, else linear.
    """
    values = [value for line in lines for value in line.curve.values]
    for line in lines:
        points = thinned(line.curve)
        marker = "o" if len(points[0]) <= 12 else ""
        axes.plot(*points, color=line.colour, linestyle=line.dash, marker=marker, markersize=3.5)
    if logarithmic and min(values, default=0.0) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        _plain_decades(axes)
    axes.set_xlabel("step")
    axes.margins(x=0.03, y=0.08)
    _plain_steps(axes)


def thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve of `MOST_POINTS` points at most: means of equally many neighbouring ones."""
    if len(curve.steps) <= MOST_POINTS:
        return [float(step) for step in curve.steps], list(curve.values)
    parts = np.array_split(np.arange(len(curve.steps)), MOST_POINTS)
    steps, values = np.array(curve.steps, float), np.array(curve.values, float)
    return [float(steps[p].mean()) for p in parts], [float(values[p].mean()) for p in parts]


@dataclass(frozen=True, slots=True)
class Widths:
    """(width, value) of the heads, FC1's first columns, the pooled states before and after."""

    colour: str
    heads: Sequence[tuple[int, float]]
    prefixes: Sequence[tuple[int, float]]
    start: tuple[int, float] | None
    pooled: tuple[int, float] | None = None


def against_width(axes: Axes, series: Sequence[Widths], names: Mapping[int, str]) -> None:
    """Heads as dots on a line, FC1's first columns as rings on a dashed one, the start as a cross,
    the trained pooled state as a diamond.

    `names` is what stands beneath a width on the axis. A dotted line goes on at the start's height:
    what is below it was had without training.
    """
    for each in series:
        colour = each.colour
        if each.start is not None:
            axes.axhline(each.start[1], color=colour, linewidth=1.1, linestyle="dotted")
            axes.plot(*each.start, color=colour, marker="x", markersize=7, markeredgewidth=2)
        if each.pooled is not None:
            axes.plot(*each.pooled, color=colour, marker="D", markersize=5)
        axes.plot(*_ordered(each.heads), color=colour, marker="o")
        if each.prefixes:
            widest = [max(each.heads)] if each.heads else []
            axes.plot(
                *_ordered([*each.prefixes, *widest]), color=colour, linestyle="dashed",
                marker="o", markerfacecolor="none", linewidth=1.3, markeredgewidth=1.4,
            )  # fmt: skip
    axes.set_xscale("log")
    widths = sorted({w for each in series for w, _ in _points(each)})
    ticks = _apart(widths, names)
    axes.set_xticks(ticks, [f"{width:,}\n{names.get(width, '')}".rstrip() for width in ticks])
    axes.xaxis.minorticks_off()
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.09, y=0.1)


def _points(each: Widths) -> list[tuple[int, float]]:
    alone = [point for point in (each.start, each.pooled) if point is not None]
    return [*each.heads, *each.prefixes, *alone]


def _ordered(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    ordered = sorted(points)
    return [width for width, _ in ordered], [value for _, value in ordered]


def _apart(widths: Sequence[int], names: Mapping[int, str]) -> list[int]:
    """The widths whose labels have room: those of heads first, from the widest."""
    if not widths:
        return []
    room = 0.115 * math.log(max(widths) / min(widths)) if len(widths) > 1 else 0.0
    chosen: list[int] = []
    for width in sorted(widths, key=lambda width: (width not in names, -width)):
        if all(abs(math.log(width / other)) >= room for other in chosen):
            chosen.append(width)
    return sorted(chosen)


LEVELS = 7


def pairs(axes: Axes, density: Density) -> None:
    """Pairs of texts by two cosines; a level of colour is an equal step of their logarithm."""
    from matplotlib.patches import PathPatch

    counts = np.array(density.counts)
    across, up = (
        np.linspace(*ends, size + 1)
        for ends, size in zip(
            (density.teacher_range, density.student_range), counts.shape, strict=True
        )
    )
    share = np.log(counts + 1) / math.log(max(int(counts.max()), 1) + 1)
    levels = np.ceil(LEVELS * share.clip(0, 1)).astype(int)
    for level in range(1, LEVELS + 1):
        path = _rectangles(levels == level, across, up)
        if path is not None:
            shade = 0.08 + 0.92 * level / LEVELS
            patch = PathPatch(path, facecolor=ink("series-1"), alpha=shade, linewidth=0)
            patch.set_gid(f"cells_{level}")
            axes.add_patch(patch)
    axes.set_xlim(*density.teacher_range)
    axes.set_ylim(*density.student_range)
    axes.set(xlabel="teacher's cosine", ylabel="student's cosine")


def _rectangles(
    cells: NDArray[np.bool_], across: NDArray[np.float64], up: NDArray[np.float64]
) -> Path | None:
    """The cells that are set, those above each other as one; None where none is."""
    from matplotlib.path import Path

    corners: list[tuple[float, float]] = []
    for column in range(cells.shape[0]):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], cells[column].astype(int), [0]))))
        left, right = across[column], across[column + 1]
        for low, high in edges.reshape(-1, 2):
            corners += [(left, up[low]), (right, up[low]), (right, up[high]), (left, up[high])]
            corners.append((left, up[low]))
    if not corners:
        return None
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(np.array(corners), codes * (len(corners) // 5))


def arms(axes: Axes, found: Sequence[tuple[str, Statistic]], baseline: Statistic | None) -> None:
    """One line per arm: the mean of its seeds, one standard deviation each way, the seeds below.

    The baseline's mean and deviation go through all lines. A filled diamond is an arm that differs
    significantly, a ring one that does not.
    """
    if baseline is not None:
        spread = baseline.sd or 0.0
        axes.axvspan(
            baseline.mean - spread, baseline.mean + spread, color=ink("quiet"), alpha=0.13, lw=0
        )
        axes.axvline(baseline.mean, color=ink("quiet"), linewidth=1, linestyle="dashed")
    for place, (name, each) in enumerate(found):
        colour = ink("series-2") if each.significant else ink("series-1")
        below = [place + 0.24] * len(each.values)
        axes.plot(each.values, below, ".", color=colour, alpha=0.6, markersize=4)
        axes.errorbar(
            each.mean, place, xerr=each.sd or 0.0, color=colour, capsize=3.5, elinewidth=1.6,
            marker="D" if each.significant else "o", markersize=6.5,
            markerfacecolor=colour if each.significant else ink("paper"), markeredgewidth=1.6,
        )  # fmt: skip
        mark = " ★" if each.significant else ""
        axes.annotate(
            f"{_cut(name, 40)}{mark}",
            (0.0, place - 0.33),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=10,
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(found) - 0.55, -0.75)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=5)


def bars(
    axes: Axes, labels: Sequence[str], values: Sequence[float], colours: Sequence[str], unit: str
) -> None:
    """A horizontal bar each, with its figure behind it."""
    places = range(len(values))
    axes.barh(places, values, color=colours, height=0.62)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{_short(value)}{unit}", (value, place), xytext=(4, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
    axes.set_yticks(places, [_cut(label, 22) for label in labels])
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1e-9]) * 1.32)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def recalls(
    axes: Axes, at: Sequence[int], lines: Sequence[tuple[Sequence[float], str, str]], chance: float
) -> None:
    """Recall at 1, 5, 10: a line for each (values, colour, dash), and what chance would give."""
    places = range(len(at))
    for values, colour, dash in lines:
        axes.plot(places, values, color=colour, linestyle=dash, marker="o")
    if chance:
        by_chance = [min(1.0, k * chance) for k in at]
        axes.plot(places, by_chance, color=ink("quiet"), linestyle="dotted")
        axes.annotate(
            "chance", (len(at) - 1, by_chance[-1]), color=ink("quiet"), fontsize=9.5,
            ha="right", va="bottom", xytext=(0, 3), textcoords="offset points",
        )  # fmt: skip
    axes.set_xticks(places, [f"recall@{k}" for k in at])
    axes.set_ylim(0, None)
    axes.margins(x=0.08)
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _plain_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=6)


def _plain_decades(axes: Axes) -> None:
    """A logarithmic axis with numbers as people write them, however small its range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
