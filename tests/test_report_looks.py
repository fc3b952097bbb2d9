"""How a report looks in a real browser: light and dark, wide and narrow, on paper."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from reports import BITES, whole

from student.report.page import render, sections
from student.report.palette import COLOURS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def seen() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain report and one whose every text bites."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, text in (("plain", "plain"), ("biting", BITES)):
        report = whole(text)
        found[name] = folder / f"{name}.html"
        found[name].write_text(render(report, sections(report)), encoding="utf-8")
    return found


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize(("width", "dark"), list(product(WIDTHS, (False, True))))
def test_the_page_fits_its_window_and_wears_its_theme(
    seen: Browser, pages: dict[str, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    for page in pages.values():
        seen.show(page, width=width, dark=dark)
        assert seen.tell("document.documentElement.scrollWidth") == width
        paper = COLOURS["paper"].dark if dark else COLOURS["paper"].light
        assert seen.tell("getComputedStyle(document.body).backgroundColor") == rgb(paper)
        # Text of a plot has the page's colour and font, and is as large as it is legible.
        quiet = COLOURS["quiet"].dark if dark else COLOURS["quiet"].light
        label = "document.querySelector('.plot text')"
        assert seen.tell(f"getComputedStyle({label}).fill") == rgb(quiet)
        same_font = f"getComputedStyle({label}).fontFamily == getComputedStyle(document.body)"
        assert seen.tell(f"{same_font}.fontFamily")
        heights = seen.tell(
            "[...document.querySelectorAll('.plot text')].map(e => "
            "[parseFloat(getComputedStyle(e).fontSize), e.getScreenCTM()])"
            ".map(([size, m]) => size * Math.hypot(m.a, m.b))"
        )
        assert min(heights) > 8.5
        image = seen.screenshot(tmp_path / f"{width}-{dark}.png")
        assert struct.unpack(">I", image[16:20])[0] == width
        assert len(image) > 100_000


def test_a_page_runs_nothing_and_asks_for_nothing(seen: Browser, pages: dict[str, Path]) -> None:
    seen.requests.clear()
    seen.show(pages["biting"], width=1280)
    assert seen.tell("typeof window.bitten") == "undefined"
    assert seen.tell("document.scripts.length") == 0
    assert seen.requests == [pages["biting"].as_uri()]
    assert seen.problems == []


def test_wide_tables_scroll_in_their_boxes(seen: Browser, pages: dict[str, Path]) -> None:
    seen.show(pages["plain"], width=390)
    boxes = seen.tell(
        "[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert any(inner > outer for inner, outer in boxes)
    assert all(outer <= 390 for _, outer in boxes)


def test_the_theme_is_chosen_by_keys_alone(seen: Browser, pages: dict[str, Path]) -> None:
    seen.show(pages["plain"], width=1280)
    paper = "getComputedStyle(document.body).backgroundColor"
    for _ in range(20):
        seen.press("Tab")
        if seen.tell("document.activeElement.name") == "theme":
            break
    assert seen.tell("document.activeElement.id") == "theme-auto"
    seen.press("ArrowRight")
    assert seen.tell("document.activeElement.id") == "theme-light"
    seen.press("ArrowRight")
    assert seen.tell(paper) == rgb(COLOURS["paper"].dark)
    seen.press("ArrowLeft")
    assert seen.tell(paper) == rgb(COLOURS["paper"].light)


def test_what_is_printed_is_white_and_has_all_that_is_folded_away(
    seen: Browser, pages: dict[str, Path]
) -> None:
    seen.show(pages["plain"], width=1280, dark=True)
    seen.call("Emulation.setEmulatedMedia", media="print")
    paper = seen.tell("getComputedStyle(document.body).backgroundColor")
    assert paper == rgb(COLOURS["paper"].light)
    assert seen.tell("getComputedStyle(document.querySelector('.theme')).display == 'none'"
                     " || document.querySelector('.theme').offsetParent === null")  # fmt: skip
    heights = seen.tell(
        "[...document.querySelectorAll('details table')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 3
    assert min(heights) > 30
