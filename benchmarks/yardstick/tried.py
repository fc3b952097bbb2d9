"""The report on what was tried beside the default recipe, one change at a time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from yardstick.arms import WIDTHS
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
        f"rate, seeds 0 to {seeds - 1}. In the first line the default's figures in %, ± their "
        "standard deviation; below, how far each variant is from them, in points. A difference "
        "within twice the ± of the first line says nothing."
    )
    yield ""
    titles = [
        "FC1, of the teacher",
        "asymmetric, of the teacher",
        *(f"{name} ({WIDTHS[name]} wide), of FC1" for name in REDUCED),
        "held-out cosine",
    ]
    yield row("variant", "steps", *titles)
    yield row(*["---"] * (len(titles) + 2))
    own = list(zip(*map(_figures, ours.results), strict=True))
    cells = [f"{100 * statistics.fmean(values):.2f}{_spread(values)}" for values in own]
    yield row("the default", _steps(ours), *cells)
    for finding in others:
        found = zip(*map(_figures, finding.results), strict=True)
        cells = [
            f"{100 * (statistics.fmean(values) - statistics.fmean(before)):+.2f}"
            for values, before in zip(found, own, strict=True)
        ]
        yield row(finding.arm, _steps(finding), *cells)


def _figures(result: Result) -> tuple[float, ...]:
    found = result["figures"]
    return (
        found["mean"]["fc1"]["share"],
        found["mean"]["asymmetric"]["share"],
        *(found["of fc1"][name]["mean"] for name in REDUCED),
        found["retention"]["fc1"]["cosine"],
    )


def _steps(finding: Finding) -> str:
    return " + ".join(f"{count:,}" for count in finding.job.steps.values())


def _spread(values: Sequence[float]) -> str:
    return f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
