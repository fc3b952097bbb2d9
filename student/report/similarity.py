"""The section of how texts lie to each other: pairs by two cosines, and neighbours side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from student.report import plots
from student.report.figures import Plot, Section, gallery
from student.report.markup import Content, Html, joined, tag, words
from student.report.records import Density, Look, Neighbour, Report, Sample
from student.report.wording import head_title
from student.spec import INIT

_TEXT = 220
"""Characters of a text that are shown."""


def section(report: Report) -> Section | None:
    """Densities and neighbours of the runs that were looked at; None where none was to be."""
    if not report.looks:
        return None
    several = len(report.looks) > 1
    parts: list[Content] = []
    for look in report.looks:
        if look.missing:
            parts.append(
                tag("p", words(look.run), " could not be looked at: ", words(look.missing),
                    class_="missing")
            )  # fmt: skip
    seen = [look for look in report.looks if not look.missing]
    drawn = [plot for place, look in enumerate(seen) for plot in densities(look, place, several)]
    if drawn:
        parts += [
            tag("p", f"All pairs of {seen[0].rows:,} held-out texts, by the cosine that teacher "
                "and student see. Colour counts pairs in equal steps of the logarithm; the "
                "narrower the band, the more the two agree about which texts are alike.",
                class_="lead"),
            gallery(drawn),
        ]  # fmt: skip
    parts += [neighbours(group) for group in _same_samples(seen)]
    return Section("similarity", "How texts lie to each other", "Similarity", joined(parts), drawn)


def densities(look: Look, place: int, several: bool) -> list[Plot]:
    """A plot for each teacher, and for the untrained student beside the trained one.

    Of several runs each has all teachers together alone.
    """
    together = look.densities[0].teacher if look.densities else ""
    return [
        Plot(
            name=f"pairs-{place}-{number}",
            title=f"{look.run if several else density.teacher} · {_whose(density)}",
            words=f"{density.pairs:,} pairs of texts by the cosine of {density.teacher} and of the "
            f"student, {_whose(density)}. Spearman's correlation {density.spearman:.3f}.",
            draw=partial(plots.pairs, density=density),
            note=f"Spearman {density.spearman:.3f}",
            size=(270.0, 256.0),
        )
        for number, density in enumerate(look.densities)
        if not several or density.teacher == together
    ]


def _whose(density: Density) -> str:
    return "before training" if density.vector == INIT else head_title(density.vector)


def _same_samples(looks: Sequence[Look]) -> list[list[Look]]:
    """Looks at the same texts with the same teachers' neighbours go side by side."""
    groups: dict[str, list[Look]] = {}
    for look in looks:
        seen = [(s.text, *(each.text for each in s.teacher)) for s in look.samples]
        groups.setdefault(repr(seen), []).append(look)
    return list(groups.values())


def neighbours(looks: Sequence[Look]) -> Html:
    """Sample texts with their nearest ones: the teachers' list beside each run's."""
    vector = head_title(looks[0].vector)
    blocks = [
        _sample([look.samples[place] for look in looks], [look.run for look in looks], number)
        for number, place in enumerate(range(len(looks[0].samples)), start=1)
    ]
    return joined(
        [
            tag("h3", "Neighbours side by side"),
            tag("p", f"Texts evenly spaced over the held-out ones, chosen by nothing else, and "
                f"their nearest among the {looks[0].rows:,} looked at: as all teachers together "
                f"see them, and as the student's {vector} does. ",
                tag("span", "Marked", class_="agreed"),
                " texts are in both lists.", class_="lead"),
            *blocks,
        ]
    )  # fmt: skip


def _sample(samples: Sequence[Sample], runs: Sequence[str], number: int) -> Html:
    first = samples[0]
    several = len(samples) > 1
    lists = [_list("Teachers", first.teacher, marked=not several)]
    for sample, run in zip(samples, runs, strict=True):
        kept = sum(neighbour.agrees for neighbour in sample.student)
        name: Content = words(run) if several else "Student"
        heading = joined([name, tag("small", f" {kept} of {len(sample.student)} in common")])
        lists.append(_list(heading, sample.student, marked=True))
    return tag(
        "article",
        tag("h4", f"Text {number}", tag("small", f" row {first.row:,}")),
        tag("blockquote", words(first.text, limit=2 * _TEXT)),
        tag("div", *lists, class_="sides"),
        class_="sample",
    )


def _list(heading: Content, found: Sequence[Neighbour], *, marked: bool) -> Html:
    items = []
    for neighbour in found:
        agrees = marked and neighbour.agrees
        items.append(
            tag(
                "li",
                tag("span", f"{neighbour.cosine:.2f}", class_="cosine"),
                tag("span", "in both: ", class_="hidden") if agrees else None,
                words(neighbour.text, limit=_TEXT),
                class_="agreed" if agrees else None,
            )
        )
    return tag("section", tag("h5", heading), tag("ol", *items))
