"""The report on what was tried beside the default recipe, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, variance

from yardstick.arms import WIDTHS
from yardstick.measure import LONG
from yardstick.summary import Finding, Result, Setting, head, row

REDUCED = [name for name in WIDTHS if name != "fc1"]


def tried(setting: Setting, findings: Sequence[Finding]) -> list[str]:
    """The lines of the report, in Markdown: the default first, the others as they are listed."""
    return [*head(setting, "What was tried beside the default recipe"), "", *_table(findings)]


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    ours, *others = findings
    seeds = len(ours.results)
    yield (
        "Each is recipes/default.toml with one thing changed (benchmarks/yardstick/variants.toml), "
        f"a student of layers {', '.join(map(str, ours.layers))} of six, the recipe's own learning "
        f"rate, seeds 0 to {seeds - 1}. In the first line the default's figures in %, FC1's by "
        "task too; below, how far each variant is from them, in points."
    )
    yield ""
    if seeds > 1:
        yield (
            "All lines together say how far two seeds of one line are apart, and so how far two "
            f"lines of {seeds} seeds are by chance: a difference over three times the standard "
            "deviation of that has a star, since so many lines are compared."
        )
        yield ""
    measured = ours.results[0]["figures"]
    titles = [
        "FC1, of the teacher",
        *measured["tasks"],
        "asymmetric, of the teacher",
        *(f"{name} ({WIDTHS[name]} wide), of FC1" for name in REDUCED),
        "held-out cosine",
        "held-out neighbours",
        *([f"held-out cosine over {LONG} tokens"] if "long" in measured["retention"] else []),
    ]
    yield row("variant", "steps", "CPU s", *titles)
    yield row(*["---"] * (len(titles) + 3))
    own = list(zip(*map(_figures, ours.results), strict=True))
    yield row("the default", *_work(ours), *(f"{100 * fmean(values):.2f}" for values in own))
    chance = by_chance(findings)
    if seeds > 1:
        yield row("by chance", "", "", *(f"± {100 * deviation:.2f}" for deviation in chance))
    for finding in others:
        found = zip(*map(_figures, finding.results), strict=True)
        cells = []
        for values, before, deviation in zip(found, own, chance, strict=True):
            difference = fmean(values) - fmean(before)
            star = "*" * (seeds > 1 and abs(difference) > 3 * deviation)
            cells.append(f"{100 * difference:+.2f}{star}")
        yield row(finding.arm, *_work(finding), *cells)


def by_chance(findings: Sequence[Finding]) -> list[float]:
    """Of each figure, the standard deviation of the difference of two lines that are equal.

    The variance over seeds is taken as the same for all lines, whose mean it is. 0 for one seed.
    """
    seeds = len(findings[0].results)
    if seeds < 2:
        return [0.0] * len(_figures(findings[0].results[0]))
    of_lines = [zip(*map(_figures, finding.results), strict=True) for finding in findings]
    variances = zip(*([variance(v) for v in line] for line in of_lines), strict=True)
    return [(2 * fmean(of_figure) / seeds) ** 0.5 for of_figure in variances]


def _figures(result: Result) -> tuple[float, ...]:
    found = result["figures"]
    kept = found["retention"]
    return (
        found["mean"]["fc1"]["share"],
        *(task["fc1"]["share"] for task in found["tasks"].values()),
        found["mean"]["asymmetric"]["share"],
        *(found["of fc1"][name]["mean"] for name in REDUCED),
        kept["all"]["fc1"]["cosine"],
        kept["all"]["fc1"]["neighbours"],
        *([kept["long"]["fc1"]["cosine"]] if "long" in kept else []),
    )


def _work(finding: Finding) -> tuple[str, str]:
    steps = " + ".join(f"{count:,}" for count in finding.job.steps.values())
    return steps, f"{fmean([result['seconds']['cpu'] for result in finding.results]):.0f}"
