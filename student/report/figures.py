"""A drawing as inline SVG, which follows the page's theme, or as a PNG. Both are deterministic."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from student.report.markup import Html, escaped, joined, tag
from student.report.palette import COLOURS, Dash, ink, variable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (340.0, 230.0)
"""Units of a plot, each about a pixel of the page: text keeps its size on a phone."""

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.parse_math": False,  # a $ in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": ink("rule"),
    "axes.facecolor": "none",
    "axes.labelcolor": ink("quiet"),
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": ink("rule"),
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "text.color": ink("ink"),
    "xtick.color": ink("rule"),
    "ytick.color": ink("rule"),
    "xtick.labelcolor": ink("quiet"),
    "ytick.labelcolor": ink("quiet"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 5,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "jasper",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What a line of one look stands for. `dash` and `marker` are as the plots draw them."""

    label: str
    colour: str
    dash: Dash = "solid"
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: a name that a file can have, a title, and in words what there is to be seen.

    `note` stands below the title.
    """

    name: str
    title: str
    words: str
    draw: Callable[[Axes], None]
    note: str = ""
    keys: Sequence[Key] = ()
    size: tuple[float, float] = SIZE


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: its heading, a word that leads to it, what stands there, its plots."""

    name: str
    title: str
    link: str
    body: Html
    plots: list[Plot] = field(default_factory=list)


def gallery(plots: Sequence[Plot]) -> Html:
    """Plots beside each other, as many as there is room for. Equal legends are shown once."""
    if not plots:
        return Html("")
    shared = plots[0].keys if all(plot.keys == plots[0].keys for plot in plots) else None
    figures = [
        tag(
            "figure",
            tag("figcaption", plot.title, tag("small", plot.note) if plot.note else None),
            legend(plot.keys) if shared is None else None,
            svg(plot),
        )
        for plot in plots
    ]
    small = plots[0].size[0] < SIZE[0]
    grid = tag("div", *figures, class_="gallery small" if small else "gallery")
    return joined([legend(shared) if shared else None, grid])


def legend(keys: Sequence[Key]) -> Html | None:
    """What the lines of a plot are, drawn as they are there."""
    if not keys:
        return None
    items = [tag("li", _swatch(key), tag("bdi", key.label)) for key in keys]
    return tag("ul", *items, class_="legend")


def svg(plot: Plot) -> Html:
    """A plot as an SVG element: text as text, colours as the page's variables, no outer address."""
    with _drawn(plot) as figure:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Html(_inlined(buffer.getvalue(), plot))


def png(plot: Plot, path: Path) -> None:
    """Write a plot, in the light theme, with its title and legend.

    Raises:
        OSError: the file cannot be written.
    """
    with _drawn(plot, titled=True) as figure:
        figure.savefig(
            path, format="png", dpi=144, facecolor=ink("paper"), metadata={"Software": None}
        )


@contextmanager
def _drawn(plot: Plot, *, titled: bool = False) -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # The library's own defaults, whatever a user's matplotlibrc says.
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A reader's browser has glyphs that the font used to measure has not.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure = Figure(
            figsize=(plot.size[0] / 72, plot.size[1] / 72),
            layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03),
        )
        plot.draw(figure.subplots())
        if titled:
            heading = f"{plot.title}\n{plot.note}".rstrip()
            figure.suptitle(heading, x=0.02, ha="left", fontsize=11, weight="bold")
            if plot.keys:
                figure.legend(
                    handles=[_handle(key) for key in plot.keys],
                    loc="outside lower left",
                    ncols=3,
                    frameon=False,
                    fontsize=8.5,
                )
        yield figure


def _handle(key: Key) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=key.colour, linestyle=key.dash, marker=key.marker or None, label=key.label
    )


_DASHES = {"solid": "", "dashed": "5 3", "dotted": "1.5 2.5", "dashdot": "6 2 1.5 2", "none": ""}
_MARKS = {
    "o": '<circle cx="13" cy="6" r="3.4" fill="{0}"/>',
    "h": '<circle cx="13" cy="6" r="3.2" fill="none" stroke="{0}" stroke-width="1.6"/>',
    "x": '<path d="M10 3l6 6M16 3l-6 6" stroke="{0}" stroke-width="1.8"/>',
    "D": '<path d="M13 2l4 4l-4 4l-4 -4z" fill="{0}"/>',
}


def _swatch(key: Key) -> Html:
    colour = variable(key.colour)
    dash = f' stroke-dasharray="{_DASHES[key.dash]}"' if _DASHES[key.dash] else ""
    line = f'<path d="M0 6h26" stroke="{colour}" stroke-width="2.2"{dash}/>'
    if key.dash == "none":
        line = ""
    mark = _MARKS[key.marker].format(colour) if key.marker else ""
    return Html(
        f'<svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">'
        f"{line}{mark}</svg>"
    )


_BY_HEX = {colour.light: f"var(--{name})" for name, colour in COLOURS.items()}


def _inlined(document: str, plot: Plot) -> str:
    """matplotlib's SVG document as an element of the page."""
    body = document[document.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    # Only what stands in tags: a stranger's words between them stay as they are.
    body = re.sub(r"<[^>]*>", lambda found: _tag_of_the_page(found[0], plot.name), body)
    body = _without_bare_groups(re.sub(r">\s+<", "><", body))
    width, height = plot.size
    label = escaped(f"{plot.title}. {plot.words}")
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{label}">{body}</svg>'
    )


def _tag_of_the_page(text: str, plot: str) -> str:
    # An id is of the whole page: groups lose theirs, what is referred to gets the plot's name.
    text = re.sub(r'<g id="(cells)?[^"]*"', lambda g: '<g class="cells"' if g[1] else "<g", text)
    text = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{plot}-", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)  # the page's, whatever the reader has
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _BY_HEX.get(found[0], found[0]), text)
    text = text.replace("; ", ";").replace(": ", ":")
    return re.sub(r' (d|x|y|transform)="([^"]*)"', _short, text)


_UNSEEN = re.compile(r'<path [^>]*style="fill:none"/>')
_RECTANGLE = re.compile(r"M(\S+) (\S+)L(\S+) \2L\3 (\S+)L\1 \4(?:L\1 \2)?z")


def _short(attribute: re.Match[str]) -> str:
    """Numbers to a hundredth of a pixel, on one line."""

    def rounded(number: re.Match[str]) -> str:
        return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

    value = " ".join(re.sub(r"-?\d+\.\d{3,}", rounded, attribute[2]).split())
    if attribute[1] == "d":
        value = re.sub(r" ?([MLzCQ]) ?", r"\1", value)
        value = _RECTANGLE.sub(r"M\1 \2H\3V\4H\1z", value)
    return f' {attribute[1]}="{value}"'


def _without_bare_groups(body: str) -> str:
    """The same drawing without groups that have no look and shapes that show nothing."""
    kept: list[bool] = []

    def decided(found: re.Match[str]) -> str:
        if found[0] == "</g>":
            return found[0] if kept.pop() else ""
        kept.append(found[0] != "<g>")
        return found[0] if kept[-1] else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", decided, _UNSEEN.sub("", body))
