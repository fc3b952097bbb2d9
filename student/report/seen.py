"""The section of images: how often they find their captions, and captions them."""

from __future__ import annotations

from functools import partial

from student.report import plots
from student.report.figures import Key, Plot, Section, gallery
from student.report.markup import Content, command, joined, table, tag, words
from student.report.palette import ink, series
from student.report.records import Recall, Report, Run
from student.report.wording import head_title


def section(report: Report) -> Section | None:
    """Recall on held-out pairs of the runs that learned from images; None where none did."""
    parts: list[Content] = []
    drawn: list[Plot] = []
    several = len(report.runs) > 1
    for place, run in enumerate(report.runs):
        if "images" not in run.last.record:
            continue
        recall = run.last.recall
        if several:
            parts.append(tag("h3", words(run.name)))
        if recall is None or not recall.recall:
            line = command(f"jasper-student recall {run.path} --recipe RECIPE")
            parts.append(tag("p", "Recall was not measured yet: ", line, class_="missing"))
            continue
        mine = _plots(run, recall, place)
        drawn += mine
        parts += [
            tag("p", f"{recall.pairs:,} held-out images with {recall.captions:,} different "
                "captions, of which one is right.", class_="lead"),
            gallery(mine),
            _table(recall),
        ]  # fmt: skip
    if not parts:
        return None
    return Section("images", "Images and captions", "Images", joined(parts), drawn)


def _plots(run: Run, recall: Recall, place: int) -> list[Plot]:
    directions = list(dict.fromkeys(d for each in recall.recall.values() for d in each))
    heads = list(recall.recall)
    colours = {head: series(i - 1) if i else ink("quiet") for i, head in enumerate(heads)}
    keys = tuple(Key(head_title(head), colours[head], "solid", "o") for head in heads)
    drawn = []
    for direction in directions:
        lines = {head: each[direction] for head, each in recall.recall.items() if direction in each}
        told = "; ".join(
            f"{head_title(head)} {', '.join(f'{value:.1%}' for value in values)}"
            for head, values in lines.items()
        )
        # Of captions several images may be right: only by image is chance one in so many captions.
        by_image = direction.startswith("image")
        drawn.append(
            Plot(
                name=f"images-{place}-{direction.replace(' ', '-')}",
                title=direction.capitalize(),
                words=f"Recall at {', '.join(map(str, recall.at))} of {run.name}: {told}.",
                draw=partial(
                    plots.recalls,
                    at=recall.at,
                    lines=[(values, colours[head], "solid") for head, values in lines.items()],
                    chance=1 / recall.captions if by_image and recall.captions else 0.0,
                ),
                keys=keys,
            )
        )
    return drawn


def _table(recall: Recall) -> Content:
    directions = list(dict.fromkeys(d for each in recall.recall.values() for d in each))
    groups = [
        (
            direction,
            [
                [head_title(head), *(f"{value:.1%}" for value in each[direction])]
                for head, each in recall.recall.items()
                if direction in each
            ],
        )
        for direction in directions
    ]
    return table("Recall on held-out pairs", ["vector", *(f"@{k}" for k in recall.at)], groups)
