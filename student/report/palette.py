"""The colours of the page, each for light and for dark.

Drawings use the light ones; in an inline SVG every one of them becomes its variable, so that a plot
follows the page's theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Dash = Literal["solid", "dashed", "dashdot", "dotted", "none"]
"""How a line is drawn, where its colour alone does not say what it is."""


class Colour(NamedTuple):
    """One colour by its role: in the light theme, in the dark one."""

    light: str
    dark: str


COLOURS: Mapping[str, Colour] = {
    "paper": Colour("#fdfcfa", "#14171c"),
    "panel": Colour("#f5f3ee", "#1c2027"),
    "rule": Colour("#dcd8cf", "#363c46"),
    "ink": Colour("#1d2127", "#e9e7e2"),
    "quiet": Colour("#59616c", "#a5adb8"),
    "accent": Colour("#0b5c8f", "#7cc0f2"),
    "agree": Colour("#dcefe3", "#1c3a2b"),
    "agree-ink": Colour("#14603a", "#86d9ab"),
    "series-1": Colour("#1b5fb0", "#79b4fb"),
    "series-2": Colour("#b3470d", "#f79a62"),
    "series-3": Colour("#1c7a4d", "#62cb98"),
    "series-4": Colour("#8b3d9e", "#d79cec"),
    "series-5": Colour("#806000", "#ddb94f"),
    "series-6": Colour("#0a7080", "#62cbdb"),
}
"""All light values differ: a drawing's colour names its variable."""

TEXT_ON = {
    "paper": (
        "ink", "quiet", "accent", "agree-ink", *(f"series-{number}" for number in range(1, 7))
    ),
    "panel": ("ink", "quiet", "accent", *(f"series-{number}" for number in range(1, 7))),
    "agree": ("ink", "agree-ink"),
}  # fmt: skip
"""Which colours text has on which ground: each pair has a contrast of 4.5 at least."""

SERIES = tuple(name for name in COLOURS if name.startswith("series-"))


def ink(name: str) -> str:
    """The colour of that role, to draw with."""
    return COLOURS[name].light


def series(number: int) -> str:
    """The colour of the n-th of several lines; after six they begin again."""
    return ink(SERIES[number % len(SERIES)])


def series_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in every section."""
    return {name: series(place) for place, name in enumerate(names)}


def variable(colour: str) -> str:
    """How a style sheet refers to a colour that was drawn with: `var(--ink)`."""
    name = next(name for name, each in COLOURS.items() if each.light == colour)
    return f"var(--{name})"


def declarations(*, dark: bool) -> str:
    """The variables of one theme, as a style sheet declares them."""
    values = (
        f"--{name}:{colour.dark if dark else colour.light}" for name, colour in COLOURS.items()
    )
    return ";".join([*values, f"color-scheme:{'dark' if dark else 'light'}"])
