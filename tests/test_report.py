"""What a report's page is: whole, harmless, the same every time, legible in both themes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from reports import BITES, made_look, made_run, results, whole

from student.report.figures import Plot, svg
from student.report.markup import Html, tag, words
from student.report.page import plots_of, render, sections
from student.report.palette import COLOURS, TEXT_ON, series
from student.report.plots import MOST_POINTS, thinned
from student.report.records import Curve, Report, Sweep

_VOID = {"meta", "input", "br"}
_NOT_CLOSED = {"path", "use", "circle"}


class Outline(HTMLParser):
    """A page taken apart by another's parser: elements, attributes, and whether all are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name in names]


def small() -> Report:
    sweep = Sweep.model_validate(results())
    return Report(runs=[made_run(stages=(1,))], sweeps=[sweep], looks=[made_look("a")])


def page_of(report: Report) -> str:
    return render(report, sections(report))


@pytest.fixture(scope="module")
def biting() -> str:
    """The page of a report in which every name and text is `BITES`."""
    return page_of(whole(BITES))


@pytest.fixture(scope="module")
def plain() -> str:
    return page_of(whole())


@pytest.fixture(scope="module")
def of_one_run() -> str:
    """The page of a run alone, as evaluated."""
    return page_of(Report(runs=[made_run(stages=(3,))], sweeps=[]))


def test_a_text_of_the_corpus_never_becomes_markup(plain: str, biting: str) -> None:
    expected = Counter(name for name, _ in Outline(plain).elements)
    found = Outline(biting)
    counts = Counter(name for name, _ in found.elements)
    # Elements of plots depend on how labels are drawn; the page's own do not depend on any text.
    for name in ("bdi", "li", "td", "th", "section", "article", "svg", "style", "meta", "ol"):
        assert counts[name] == expected[name], name
    assert not {"script", "img", "iframe", "link", "object", "form"} & set(counts)
    every = [attribute for _, attributes in found.elements for attribute in attributes]
    assert not [name for name in every if name.startswith("on")]
    assert "window.bitten = 1" in "".join(found.text)
    assert "\x00" not in biting
    assert "\x1b" not in biting


def test_the_page_asks_for_nothing_outside_itself(biting: str) -> None:
    found = Outline(biting)
    for name, attributes in found.elements:
        assert "src" not in attributes
        assert not any(key.startswith("xmlns") for key in attributes), name
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
    style = biting[biting.index("<style>") : biting.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m for m in found.named("meta") if "http-equiv" in m)["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_reference_of_the_page_leads_somewhere_and_ids_are_unique(plain: str) -> None:
    found = Outline(plain)
    ids = Counter(a["id"] for _, a in found.elements if "id" in a)
    assert max(ids.values()) == 1
    references = {a["href"] for _, a in found.elements if "href" in a}
    references |= {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", plain)}
    references |= {f"#{a['aria-labelledby']}" for _, a in found.elements if "aria-labelledby" in a}
    assert {f"#{name}" for name in ids} >= references
    assert len(references) > 20


def test_equal_reports_give_equal_pages_byte_by_byte() -> None:
    script = (
        "import sys, hashlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_report import page_of, small\n"
        "print(hashlib.sha256(page_of(small()).encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert other.stdout.strip() == hashlib.sha256(page_of(small()).encode()).hexdigest()


def test_plots_say_in_words_what_they_show_and_follow_the_theme(plain: str) -> None:
    plots = [a for a in Outline(plain).named("svg") if a.get("class") == "plot"]
    assert len(plots) > 20
    assert all(p["role"] == "img" and re.search(r"\. .*\d", p["aria-label"] or "") for p in plots)
    drawings = "".join(re.findall(r"<svg.*?</svg>", plain, re.DOTALL))
    assert set(re.findall(r"var\(--([\w-]+)\)", drawings)) <= set(COLOURS)
    assert not re.findall(r"(?:fill|stroke): *(?:#|rgb|black|white)", drawings)
    assert "<text" in drawings


def test_a_label_in_a_plot_stays_what_it_was() -> None:
    label = "<path id=\"x\" d='M 1.23456'/> url(#a) #1b5fb0 $x$ 線"
    drawn = svg(Plot("name", "title", "words", lambda axes: axes.set(xlabel=label) and None))
    assert label in "".join(Outline(drawn).text)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_text_has_a_contrast_of_four_and_a_half_in_both_themes() -> None:
    for ground, inks in TEXT_ON.items():
        for name in inks:
            for theme in ("light", "dark"):
                pair = [luminance(getattr(COLOURS[each], theme)) for each in (ground, name)]
                assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5, (ground, name, theme)
    assert len({colour.light for colour in COLOURS.values()}) == len(COLOURS)


def test_headings_descend_one_by_one_and_tables_say_what_their_cells_are(plain: str) -> None:
    found = Outline(plain)
    levels = [int(name[1]) for name, _ in found.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert all(cell["scope"] in ("col", "row", "rowgroup") for cell in found.named("th"))
    boxes = [a for a in found.named("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(found.named("table")) == len(found.named("caption"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_the_figures_of_the_evaluation_stand_in_its_table(of_one_run: str) -> None:
    measured = made_run().stages[0].evaluation
    assert measured is not None
    cells = re.findall(r"<td>(?:<strong>)?([\d.]+)(?:</strong>)?</td>", of_one_run)
    for by in measured.retention.values():
        for figures in by.values():
            for value in figures.values():
                assert value is None or f"{value:.3f}" in cells
    # On a task: under the first wording, of the teacher, and over both wordings.
    for told in ("0.611 ± 0.012", "0.733", "0.599 ± 0.017"):
        assert told in of_one_run


def test_the_summary_gives_the_first_figures_in_words(of_one_run: str) -> None:
    summary = re.search(r'<p class="summary">(.*?)</p>', of_one_run, re.DOTALL)
    assert summary is not None
    text = "".join(Outline(f"<p>{summary[1]}</p>").text)
    # FC1 against all teachers, and the untrained start: 0.3 + 0.02·i + 0.003·k, i = 1, 0.
    assert "Spearman correlation of 0.323 (0.303 before training)" in text
    assert "keeps 33% of each text's ten nearest neighbours (31% before training)" in text
    assert "in 1 stage and 12 s of training" in text


def test_figures_of_an_earlier_stage_are_a_run_s_only_while_its_text_side_stayed() -> None:
    measured = made_run(stages=(3, 4))
    assert measured.evaluated is measured.stages[0], "stage 4 trains the image side alone"
    third = measured.stages[0].model_copy(update={"evaluation": None})
    second = made_run(stages=(2,)).stages[0]
    second = second.model_copy(update={"evaluation": measured.stages[0].evaluation})
    run = measured.model_copy(update={"stages": [second, third, measured.stages[1]]})
    assert run.evaluated is None
    found = "".join(Outline(page_of(Report(runs=[run], sweeps=[]))).text)
    assert "What it kept of them was not measured yet." in found
    assert "jasper-student evaluate runs/a does it" in " ".join(found.split())
    going_on = third.model_copy(update={"finished": False, "record": {}})
    run = measured.model_copy(update={"stages": [second, going_on]})
    assert run.evaluated is second


def test_several_runs_are_told_side_by_side() -> None:
    runs = [made_run("a", stages=(3,)), made_run("b", shift=0.05, stages=(3,)),
            made_run("c", stages=(1,))]  # fmt: skip
    report = Report(runs=runs, sweeps=[], looks=[made_look("a"), made_look("b")])
    parts = sections(report)
    page = render(report, parts)
    found = "".join(Outline(page).text)
    assert "FC1 of b comes nearest to its teachers" in found
    assert "0.373, against 0.323 of a, the next." in found
    assert "jasper-student evaluate runs/c" in found
    assert page.count("<article") == 6  # the same texts: one block, with a list for each run
    titles = {plot.title for plot in plots_of(parts)}
    assert {"Spearman: left", "Recall@10: all teachers"} <= titles


def test_runs_of_different_teachers_are_not_ranked_and_a_run_keeps_its_colour() -> None:
    a, b, c = (made_run(name, stages=(3,)) for name in "abc")
    plain = a.stages[0].model_copy(update={"evaluation": None})
    other = c.stages[0].model_copy(update={"record": {**c.stages[0].record, "teachers": ["x"]}})
    runs = [a.model_copy(update={"stages": [plain]}), b, c.model_copy(update={"stages": [other]})]
    parts = sections(Report(runs=runs, sweeps=[]))
    page = render(Report(runs=runs, sweeps=[]), parts)
    assert "comes nearest" not in page
    keys = [key for plot in plots_of(parts) for key in plot.keys if key.label in "abc"]
    expected = {(name, series(place)) for place, name in enumerate("abc")}
    assert {(key.label, key.colour) for key in keys} == expected
    assert sum(key.label == "a" for key in keys) < sum(key.label == "b" for key in keys)


def test_what_differs_from_the_baseline_is_marked_and_only_that() -> None:
    report = Report(runs=[], sweeps=[Sweep.model_validate(results())])
    parts = sections(report)
    page = render(report, parts)
    text = "".join(Outline(page).text)
    assert "1 differs significantly from the baseline: one teacher." in text
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = dict(zip(("paper", "no", "one"), re.findall("<tr>(.*?)</tr>", table), strict=True))
    assert [row.count("★") for row in rows.values()] == [0, 0, 2]
    assert "0.710 ± 0.004" in rows["one"]
    assert "-0.040, p = 0.003" in rows["one"]
    assert "one teacher 0.710 ± 0.004 ★" in plots_of(parts)[0].words


def test_a_long_curve_is_thinned_to_means() -> None:
    curve = Curve(steps=list(range(1, 1001)), values=[float(i % 2) for i in range(1000)])
    steps, values = thinned(curve)
    assert len(steps) == len(values) == MOST_POINTS
    assert (steps[0], values[0]) == (4.0, pytest.approx(3 / 7))
    assert sum(values) / len(values) == pytest.approx(0.5)
    short = Curve(steps=[10, 20], values=[3.0, 1.0])
    assert thinned(short) == ([10.0, 20.0], [3.0, 1.0])


@pytest.mark.slow
def test_six_whole_runs_and_a_sweep_stay_below_a_megabyte_and_a_half() -> None:
    runs = [made_run(name, points=700, stages=(1, 2, 3, 4)) for name in "abcdef"]
    sweep = Sweep.model_validate(results())
    looks = [made_look(run.name, "word " * 400) for run in runs]
    page = page_of(Report(runs=runs, sweeps=[sweep], looks=looks))
    assert len(page.encode()) < 1_500_000


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b", Html("<br>"), title='"') == '<p title="&quot;">a &lt; b<br></p>'
    assert tag("p", None, 3, hidden=True, class_=None) == "<p hidden>3</p>"
    assert words("a  b\n\ud800c", limit=3) == '<bdi dir="auto">a b …</bdi>'
    assert words("\ud800") == '<bdi dir="auto">\ufffd</bdi>'
