"""The sections as one document: it refers to nothing outside itself and runs no script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from student.report import (
    ablation,
    kept,
    provenance,
    seen,
    similarity,
    throughput,
    training,
)
from student.report.figures import Plot, Section, png
from student.report.markup import Html, joined, tag, words
from student.report.opening import opening, title
from student.report.records import Report
from student.report.style import style_sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may do for this page: show it. No script, no request, whatever its texts hold."""


def sections(report: Report) -> list[Section]:
    """The sections that the report has something for, in their order."""
    found = [
        kept.section(report),
        *(ablation.section(sweep, number) for number, sweep in enumerate(report.sweeps, start=1)),
        similarity.section(report),
        training.section(report),
        throughput.section(report),
        seen.section(report),
        provenance.section(report),
    ]
    return [section for section in found if section is not None]


def render(report: Report, parts: list[Section]) -> str:
    """The page as HTML: equal reports give equal pages, byte by byte."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title(report)),
        tag("style", Html(style_sheet())),
    )
    body = tag(
        "body",
        tag(
            "div",
            tag("header", _bar(parts), opening(report)),
            tag("main", *(_section(part) for part in parts)),
            tag("footer", "Made by jasper. The page is whole: it opens offline, loads nothing and "
                "runs no script."),
            class_="page",
        ),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def draw(parts: list[Section], folder: Path, advance: Callable[[int], None]) -> None:
    """Write every plot of these sections as a PNG of its name.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots_of(parts):
        png(plot, folder / f"{plot.name}.png")
        advance(1)


def plots_of(parts: list[Section]) -> list[Plot]:
    """All plots, in the order of the page."""
    return [plot for part in parts for plot in part.plots]


def _section(part: Section) -> Html:
    heading = tag("h2", words(part.title), id=f"{part.name}-title")
    return tag("section", heading, part.body, id=part.name, aria_labelledby=f"{part.name}-title")


def _bar(parts: list[Section]) -> Html:
    """Where the sections are, and the choice of theme, which is plain CSS."""
    links = [tag("li", tag("a", part.link, href=f"#{part.name}")) for part in parts]
    choices = []
    for theme in ("auto", "light", "dark"):
        chosen = theme == "auto"
        name = f"theme-{theme}"
        choices.append(tag("input", type="radio", name="theme", id=name, checked=chosen))
        choices.append(tag("label", theme.capitalize(), for_=name))
    legend = tag("legend", "Theme", class_="hidden")
    return tag(
        "div",
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("fieldset", legend, joined(choices), class_="theme"),
        class_="bar",
    )
