"""HTML as values: whatever is no `Html` yet is text and is escaped, so that no text becomes markup.

The texts of a corpus are strangers'. They can hold `<script>`, control characters, and marks that
turn the direction of writing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_VOID = frozenset({"meta", "input", "br", "hr"})
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Markup, to be written as it is: made here, of plots, and of the style sheet, nowhere else."""

    __slots__ = ()


Content = str | int | float | None
"""What an element may hold: `Html` as it is, any other text escaped, None as nothing."""


def escaped(text: str) -> Html:
    """Text as markup that shows it; what no page may hold shows as �."""
    return Html(html.escape(_CONTROL.sub("\ufffd", text), quote=True))


def tag(name: str, /, *children: Content, **attributes: Any) -> Html:
    """An element. Attributes: `class_` for class, `aria_label` for aria-label; None is left out."""
    pairs = [_attribute(key, value) for key, value in attributes.items()]
    opening = "".join([name, *(f" {pair}" for pair in pairs if pair)])
    if name in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{joined(children)}</{name}>")


def joined(children: Iterable[Content]) -> Html:
    """Pieces one after the other."""
    return Html("".join(_content(child) for child in children))


def words(text: str, *, limit: int = 0) -> Html:
    """A stranger's text, isolated from what stands around it, cut after `limit` characters."""
    line = " ".join(text.split())
    if limit and len(line) > limit:
        line = f"{line[:limit].rstrip()} …"
    return tag("bdi", line, dir="auto")


def table(
    caption: Content,
    columns: Sequence[Content],
    groups: Sequence[tuple[Content, Sequence[Sequence[Content]]]],
    *,
    wordy: Collection[int] = (),
) -> Html:
    """A table in a box of its own, which scrolls when it is wider than the page.

    `groups` are (heading, rows): a heading spans the table, None for none. The first cell of a row
    is its heading. The columns `wordy` hold words and begin at the left, others figures.
    """
    kinds = ["words" if place in wordy else None for place in range(len(columns))]
    cells = [
        tag("th", column, scope="col", class_=kind)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    head = tag("tr", *cells)
    bodies = []
    for heading, rows in groups:
        lines = [] if heading is None else [_group_heading(heading, len(columns))]
        lines += [
            tag("tr", tag("th", row[0], scope="row"), *map(_cell, row[1:], kinds[1:]))
            for row in rows
        ]
        bodies.append(tag("tbody", *lines))
    inner = tag("table", tag("caption", caption), tag("thead", head), *bodies)
    label = re.sub("<[^>]*>", "", _content(caption))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=Html(label))


def command(line: str) -> Html:
    """A command to be typed."""
    return tag("code", line, class_="command")


def _group_heading(heading: Content, columns: int) -> Html:
    return tag("tr", tag("th", heading, scope="rowgroup", colspan=columns), class_="group")


def _cell(content: Content, kind: str | None) -> Html:
    return tag("td", "–" if content is None or content == "" else content, class_=kind)


def _content(child: Content) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else escaped(str(child))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return name if value is True else f'{name}="{_content(value)}"'
