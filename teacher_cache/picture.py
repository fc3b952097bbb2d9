"""A survey as a picture: one figure of small panels, drawn without a display."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format import CacheError
from teacher_cache.search import TOGETHER
from teacher_cache.survey import NEIGHBOURS, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by everybody (Okabe and Ito). The first ones are the teachers', in their order."""

_TOGETHER_COLOUR = "#444444"
_FATES = {
    "trained on": "#0072B2",
    "held out": "#56B4E9",
    "duplicate": "#999999",
    "near duplicate": "#BBBBBB",
    "skipped": "#D55E00",
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name is a dollar
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_SOURCES = 8
_BINS = 60


def draw(found: Survey, summary: dict[str, Any], path: Path) -> None:
    """Draw what a survey found, with its summary's numbers, as a PNG.

    Raises:
        CacheError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
        figure = Figure(figsize=(13.5, 8), layout=layout)
        panels = figure.subplots(2, 3)
        _draw_texts(panels[0, 0], summary["counts"])
        _draw_characters(panels[0, 1], found)
        _draw_tokens(panels[0, 2], found)
        _draw_norms(panels[1, 0], found)
        _draw_similarities(panels[1, 1], found)
        _draw_agreement(panels[1, 2], found)
        figure.suptitle(_title(summary), x=0.01, ha="left", fontsize=13, weight="bold")
        figure.supxlabel(_sample(summary), x=0.01, ha="left", fontsize=8, color="#777777")
        try:
            figure.savefig(path, format="png", dpi=130)
        except OSError as error:
            raise CacheError(f"{path} cannot be written: {error.strerror or error}") from None


def _title(summary: dict[str, Any]) -> str:
    teachers = " + ".join(block["teacher"] for block in summary["blocks"])
    return f"{teachers}: {summary['rows']:,} rows × {summary['width']:,}"


def _sample(summary: dict[str, Any]) -> str:
    sample = summary["sample"]
    return (
        f"{summary['path']} · identity {summary['identity']} · lengths and norms of "
        f"{sample['rows']:,} rows, similarities of all pairs of {sample['pair_rows']:,}"
    )


def _draw_texts(axes: Axes, counts: dict[str, Any]) -> None:
    """A bar for each source: what became of its texts."""
    # A cache that another program wrote need not have counted all of it.
    sources = {name: Counter(found) for name, found in counts.items()}
    kept = sum(source["kept"] for source in sources.values())
    if not kept:
        _say(axes, "Texts by source", "not recorded")
        return
    names = sorted(sources, key=lambda name: -sources[name]["kept"])
    shown = {name: sources[name] for name in names[:_SOURCES]}
    rest = names[_SOURCES:]
    if rest:
        shown[f"{len(rest)} more"] = sum((sources[name] for name in rest), Counter())
    parts = {
        "trained on": [c["kept"] - c["held_out"] for c in shown.values()],
        "held out": [c["held_out"] for c in shown.values()],
        "duplicate": [c["duplicates"] for c in shown.values()],
        "near duplicate": [c["near_duplicates"] for c in shown.values()],
        "skipped": [c["skipped"] for c in shown.values()],
    }
    left = np.zeros(len(shown))
    for fate, values in parts.items():
        if any(values):
            axes.barh(list(shown), values, left=left, height=0.6, color=_FATES[fate], label=fate)
            left += values
    for place, (count, end) in enumerate(zip(shown.values(), left, strict=True)):
        axes.annotate(
            f" {count['kept'] / kept:.0%} of the cache",
            (end, place),
            va="center",
            fontsize=8,
            color="#333333",
        )
    axes.set(title="Texts by source", xlabel="texts", xlim=(0, max(left.max() * 1.4, 1)))
    # The first source on top, the legend above it; a lone bar is no wall.
    slots = max(len(shown), 4)
    axes.set_ylim(slots - 0.4, -0.6 - 0.2 * slots)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(_counts)
    axes.legend(loc="upper left", ncols=3, columnspacing=1.2, handlelength=1)


def _draw_characters(axes: Axes, found: Survey) -> None:
    edges = _whole_edges(found.characters)
    counts, _ = np.histogram(found.characters, edges)
    axes.stairs(counts, edges, color="#7A9CC6", fill=True)
    median = float(np.median(found.characters))
    axes.axvline(median, color="#333333", linewidth=1)
    axes.annotate(
        f" median {median:,.0f}", (median, 0.97), xycoords=axes.get_xaxis_transform(), va="top"
    )
    axes.set(title="Length of the texts", xlabel="characters", ylabel="texts")
    _logarithmic(axes)
    _raise(axes, 1.08)


def _draw_tokens(axes: Axes, found: Survey) -> None:
    edges = _whole_edges(found.tokens)
    for place, block in enumerate(found.reader.manifest.blocks):
        tokens = found.tokens[:, place]
        longest = (tokens == tokens.max()).mean()
        label = f"{block.teacher}: at most {tokens.max():,} ({longest:.1%} of the texts)"
        _outlined(axes, tokens, edges, _COLOURS[place % len(_COLOURS)], label)
    axes.set(title="What each teacher saw of them", xlabel="tokens", ylabel="texts")
    _logarithmic(axes)
    _legend(axes)


def _draw_norms(axes: Axes, found: Survey) -> None:
    """Each teacher's norms about their median: teachers differ in scale by orders."""
    medians = np.median(found.norms, axis=0)
    relative = found.norms / medians
    low, high = np.quantile(relative, [0.001, 0.999])
    edges = np.linspace(min(low, 0.98), max(high, 1.02), _BINS)
    for place, block in enumerate(found.reader.manifest.blocks):
        colour = _COLOURS[place % len(_COLOURS)]
        label = f"{block.teacher}: median {medians[place]:.4g}"
        _outlined(axes, relative[:, place], edges, colour, label, density=True)
    axes.set(title="Norms of the raw vectors", xlabel="norm ÷ median", ylabel="density (log)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_counts)
    _legend(axes)


def _draw_similarities(axes: Axes, found: Survey) -> None:
    values = [value for value in found.similarities.values() if len(value)]
    if not values:
        _say(axes, "Similarities of pairs", "one row has no pairs")
        return
    low, high = (float(value) for value in (min(map(np.min, values)), max(map(np.max, values))))
    edges = np.linspace(low, max(high, low + 0.01), _BINS)  # float32 has no bins in one value
    for place, (name, value) in enumerate(found.similarities.items()):
        is_together = name == TOGETHER and place > 0
        colour = _TOGETHER_COLOUR if is_together else _COLOURS[place % len(_COLOURS)]
        label = f"{name}: median {np.median(value):.2f}"
        _outlined(axes, value, edges, colour, label, density=True, filled=not is_together)
    axes.set(title="Similarities of pairs", xlabel="cosine", ylabel="density")
    _legend(axes)


def _draw_agreement(axes: Axes, found: Survey) -> None:
    if not found.agreements:
        _say(axes, "Agreement of the teachers", "there is one teacher to be heard")
    elif len(found.agreements) == 1:
        _draw_pair(axes, found)
    else:
        _draw_matrix(axes, found)


def _draw_pair(axes: Axes, found: Survey) -> None:
    """Two teachers: every pair of rows, by the similarity that each of them sees."""
    (agreement,) = found.agreements
    first, second = (found.similarities[name] for name in agreement.teachers)
    hexagons = axes.hexbin(
        first, second, gridsize=55, bins="log", mincnt=1, cmap="viridis", linewidths=0.1
    )
    axes.figure.colorbar(hexagons, ax=axes, label="pairs of rows", pad=0.02, format=_counts)
    axes.set(
        title="Agreement of the teachers",
        xlabel=f"cosine: {agreement.teachers[0]}",
        ylabel=f"cosine: {agreement.teachers[1]}",
    )
    axes.annotate(
        f"Spearman {agreement.order:.3f}\n"
        f"{agreement.neighbours:.0%} of {NEIGHBOURS} neighbours in common",
        (0.03, 0.97),
        xycoords="axes fraction",
        va="top",
    )
    _raise(axes, 1.12)


def _draw_matrix(axes: Axes, found: Survey) -> None:
    """Three teachers or more: Spearman above the diagonal, common neighbours below."""
    names = found.reader.teachers
    grid: NDArray[np.float64] = np.full((len(names), len(names)), np.nan)
    for each in found.agreements:
        a, b = (names.index(name) for name in each.teachers)
        grid[a, b], grid[b, a] = each.order, each.neighbours
    axes.imshow(grid, cmap="viridis", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.set_title("Agreement of the teachers")
    axes.set_xlabel(f"upper: Spearman · lower: share of {NEIGHBOURS} neighbours in common")


def _outlined(
    axes: Axes,
    values: NDArray[Any],
    edges: NDArray[np.float64],
    colour: str,
    label: str,
    *,
    density: bool = False,
    filled: bool = True,
) -> None:
    """A histogram that lets others be seen behind it."""
    counts, _ = np.histogram(values, edges, density=density)
    axes.stairs(counts, edges, color=colour, linewidth=1.6, label=label)
    if filled:
        axes.stairs(counts, edges, color=colour, alpha=0.15, fill=True)


def _whole_edges(values: NDArray[Any]) -> NDArray[np.float64]:
    """Bins of equal ratio whose edges lie between whole numbers, so that each holds its share."""
    low, high = max(int(values.min()), 1), int(values.max()) + 1
    edges: NDArray[np.float64] = np.unique(np.geomspace(low, high, _BINS // 2).round()) - 0.5
    return edges if len(edges) > 1 else np.array([low - 0.5, high + 0.5])


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(_counts)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(_counts)


def _legend(axes: Axes) -> None:
    """A legend with room of its own above the curves."""
    lines = len(axes.get_legend_handles_labels()[1])
    _raise(axes, 1.04 + 0.09 * lines)
    axes.legend(loc="upper left")


def _raise(axes: Axes, factor: float) -> None:
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(low, low * (high / low) ** factor)
    else:
        axes.set_ylim(low, low + (high - low) * factor)


def _say(axes: Axes, title: str, words: str) -> None:
    axes.set_title(title)
    axes.text(0.5, 0.5, words, ha="center", va="center", color="#777777", transform=axes.transAxes)
    axes.set_axis_off()


def _counts(value: float, _: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):,.4g}{unit}"
    return f"{value:,.4g}"
