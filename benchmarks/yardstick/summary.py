"""The report: what was compared, how, and what each arm keeps of its teacher."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yardstick.arms import ARMS, WIDTHS, arm_of, batches_of, bf16, versions_used
from yardstick.caches import MAX_TOKENS, TEACHER, Material
from yardstick.ledger import Job
from yardstick.measure import LONG
from yardstick.shortlist import LENGTH
from yardstick.tuning import best_rate

Result = Mapping[str, Any]

MEAN_AND_WORST = ("mean", "worst")


@dataclass(frozen=True, slots=True)
class Setting:
    """How the arms were compared."""

    command: str
    material: Material
    jobs: int
    tasks: str
    budget: float
    tuning: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found for an arm and a student: the rates tried, a job of the last ones, results."""

    arm: str
    layers: tuple[int, ...]
    rates: Mapping[float, float]
    job: Job
    results: Sequence[Result]

    def over_seeds(self, value: Callable[[Result], float]) -> list[float]:
        """A figure of every seed."""
        return [value(result) for result in self.results]


def report(setting: Setting, findings: Sequence[Finding], longest: Finding | None) -> list[str]:
    """The lines of the report, in Markdown."""
    lines = [
        *head(setting, "Which recipe keeps most of a teacher for the same work?"),
        "",
        *_arms(),
    ]
    for layers in dict.fromkeys(finding.layers for finding in findings):
        of_student = [finding for finding in findings if finding.layers == layers]
        lines += ["", f"## The student of {len(layers)} layers ({_listed(layers)} of six)", ""]
        lines += [*_shares(of_student), "", *_differences(of_student), *_tasks(of_student), ""]
        lines += [*_heads(of_student), "", *_retention(of_student)]
    if longest is not None:
        lines += ["", "## The default on all texts", "", _long(longest), ""]
        lines += [*_shares([longest]), ""]
        lines += [*_tasks([longest]), "", *_heads([longest]), "", *_retention([longest])]
    if any(finding.rates for finding in findings):
        lines += ["", "## Learning rates tried", "", *_rates(setting, findings)]
    return lines


def head(setting: Setting, title: str) -> Iterator[str]:
    """The title of a report, and how it was measured."""
    reader = setting.material.reader
    counts = {task.name: len(task.queries) for task in setting.material.tasks(setting.tasks)}
    yield f"# {title}"
    yield ""
    yield hardware(
        f"{setting.jobs} trainings at a time, one thread each, {'bf16' if bf16() else 'fp32'} "
        "for all"
    )
    yield f"Command: `{setting.command}`"
    yield ""
    yield (
        f"Teacher: {TEACHER['name']} in fp32, texts cut at {MAX_TOKENS} tokens. "
        f"{len(reader.train_rows):,} training texts (WordNet's definitions and examples, books and "
        f"Wikipedia in pieces of one to three sentences), {len(reader.held_out_rows):,} held out. "
        f"Every training has about {setting.budget:.0f} CPU seconds of one thread, for its steps "
        "and the heads that are solved before them; what it took is in its line."
    )
    yield ""
    asked = "; ".join(f"{name} ({count:,} queries)" for name, count in counts.items())
    yield (
        f"Tasks (`{setting.tasks}`), whose texts are no training texts: {asked}. Scores are "
        "nDCG@10 with one right document among as many as there are queries, as a share of the "
        "teacher's own score at its full width; ± is the standard deviation over seeds, in "
        "brackets the standard error over queries. Asymmetric: the student's queries among the "
        "teacher's documents."
    )


def hardware(how: str) -> str:
    """A report's line on the machine and how it was used, the day and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in versions_used().items())
    return (
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), {how}. "
        f"{date.today():%Y-%m-%d}. Versions: {versions}."
    )


def _arms() -> Iterator[str]:
    yield "| arm | what it is |"
    yield "|---|---|"
    for arm in ARMS.values():
        yield row(arm.name, arm.what)
    yield ""
    yield (
        "All arms begin from the same layers, are cut at the same length, multiply in the same "
        "precision and are measured in fp32. They differ in more than their losses: the other "
        "library's trainer pads a batch to its longest text and keeps the model's dropout, ours "
        "cuts batches into parts of like lengths and has none. Between vectors of length 1 MSE is "
        "the cosine loss up to a factor: `cosine` is `mse` on our trainer, with FC1."
    )


def _long(finding: Finding) -> str:
    minutes = finding.results[0]["seconds"]["wall"] / 60
    return (
        f"Layers {_listed(finding.layers)}, {minutes:.0f} minutes of {finding.job.threads} "
        "threads, at the learning rate of the short runs. What the teacher takes to encode the "
        "texts is not counted."
    )


def _shares(findings: Sequence[Finding]) -> Iterator[str]:
    names = [*WIDTHS, "asymmetric"]
    yield "Share of the teacher's score, mean of the tasks, in %:"
    yield ""
    titles = [f"{name}, {width} wide" for name, width in WIDTHS.items()]
    titles = ["learning rate", "steps", "texts", "seeds", *titles, "asymmetric", "CPU s", "wall s"]
    yield row("arm", *titles)
    yield row(*["---"] * (1 + len(titles)))
    for finding in findings:
        arm, of_stage = arm_of(finding.arm), finding.job.steps
        steps = " + ".join(f"{count:,}" for count in of_stage.values())
        sizes = batches_of(arm, finding.layers)
        texts = sum(count * sizes[stage] for stage, count in of_stage.items())
        yield row(
            finding.arm,
            f"{finding.job.rate:g}" if arm.trains else "-",
            steps or "-",
            f"{texts:,}" if arm.trains else "-",
            str(len(finding.results)),
            *(_mean_share(finding, name) for name in names),
            *(_seconds(finding, key) for key in ("cpu", "wall")),
        )


def _differences(findings: Sequence[Finding]) -> Iterator[str]:
    """How far the default is before each arm, in points, beside what chance does to it."""
    ours = next((finding for finding in findings if finding.arm == "default"), None)
    others = [finding for finding in findings if finding.arm != "default"]
    if ours is None or not others or len(ours.results) < 2:
        return
    yield (
        "The default less each arm, in points of the same means; ± is the standard deviation of "
        "the difference of two single trainings over seeds, in brackets, for FC1, the standard "
        "error of the difference over queries, pair by pair:"
    )
    yield ""
    yield row("arm", *WIDTHS, "asymmetric")
    yield row(*["---"] * (len(WIDTHS) + 2))
    for finding in others:
        cells = []
        for name in (*WIDTHS, "asymmetric"):
            mine, theirs = _mean_shares(ours, name), _mean_shares(finding, name)
            spread = sum(statistics.variance(each) for each in (mine, theirs) if len(each) > 1)
            cells.append(f"{100 * (_mean(mine) - _mean(theirs)):+.2f} ± {100 * spread**0.5:.2f}")
        cells[0] += f" ({100 * np.linalg.norm(_parts(ours) - _parts(finding)):.2f})"
        yield row(finding.arm, *cells)
    yield ""


def _tasks(findings: Sequence[Finding]) -> Iterator[str]:
    tasks = findings[0].results[0]["figures"]["tasks"]
    yield "The same, task by task, FC1 (in the first line the teacher's nDCG@10):"
    yield ""
    yield row("arm", *tasks)
    yield row(*["---"] * (len(tasks) + 1))
    yield row("the teacher", *(f"{figures['teacher']:.4f}" for figures in tasks.values()))
    for finding in findings:
        cells = []
        for task in tasks:
            of_task = [result["figures"]["tasks"][task]["fc1"] for result in finding.results]
            error = _mean([figures["standard_error"] for figures in of_task])
            cells.append(f"{_spread([f['share'] for f in of_task])} ({100 * error:.2f})")
        yield row(finding.arm, *cells)


def _heads(findings: Sequence[Finding]) -> Iterator[str]:
    yield (
        "What the reduced vectors keep of FC1's score, and what a list of "
        f"{LENGTH} candidates by each vector has of the teacher's recall@{LENGTH} at full width, "
        "in %, on the mean and on the worst task:"
    )
    yield ""
    columns = [
        *(("of fc1", name, which) for name in WIDTHS if name != "fc1" for which in MEAN_AND_WORST),
        *(("shortlist", name, which) for name in WIDTHS for which in MEAN_AND_WORST),
    ]
    names = {"of fc1": "of FC1's score", "shortlist": f"recall@{LENGTH}"}
    yield row("arm", *(f"{name}: {names[of]}, {which}" for of, name, which in columns))
    yield row(*["---"] * (len(columns) + 1))
    for finding in findings:
        cells = [
            _spread([result["figures"][of][name][which] for result in finding.results])
            for of, name, which in columns
        ]
        yield row(finding.arm, *cells)


def _retention(findings: Sequence[Finding]) -> Iterator[str]:
    yield (
        "On held-out rows: FC1's cosine with its target; agreement in the order of all "
        "similarities (Spearman) and share of the ten nearest neighbours kept, in %; the last "
        f"columns are of those over {LONG} tokens alone:"
    )
    yield ""
    columns = [
        ("all", "fc1", "cosine"),
        *(("all", name, what) for name in WIDTHS for what in ("order", "neighbours")),
        *(("long", "fc1", what) for what in ("cosine", "order", "neighbours")),
    ]
    measured = findings[0].results[0]["figures"]["retention"]
    columns = [column for column in columns if column[0] in measured]
    titles = [f"{'long, ' * (of == 'long')}{name}: {what}" for of, name, what in columns]
    yield row("arm", *titles)
    yield row(*["---"] * (len(titles) + 1))
    for finding in findings:
        kept = [result["figures"]["retention"] for result in finding.results]
        cells = [
            _spread([figures[of][name][what] for figures in kept]) for of, name, what in columns
        ]
        yield row(finding.arm, *cells)


def _rates(setting: Setting, findings: Sequence[Finding]) -> Iterator[str]:
    yield (
        "Learning rates are each arm's own, the best of those tried for "
        f"{setting.tuning:.0f} CPU seconds, with one seed, on the tasks of `dev`: FC1's mean share "
        "of the teacher's score, in %. The rate is the largest of an arm's stages."
    )
    yield ""
    rates = sorted({rate for finding in findings for rate in finding.rates})
    yield row("layers", "arm", *(f"{rate:g}" for rate in rates))
    yield row(*["---"] * (len(rates) + 2))
    for finding in findings:
        if finding.rates:
            best = best_rate(finding.rates)
            cells = [
                "" if rate not in finding.rates
                else f"**{100 * finding.rates[rate]:.2f}**" if rate == best
                else f"{100 * finding.rates[rate]:.2f}"
                for rate in rates
            ]  # fmt: skip
            yield row(_listed(finding.layers), finding.arm, *cells)


def _parts(finding: Finding) -> NDArray[np.float64]:
    """What each query has to do with the error of FC1's mean share, over the seeds."""
    return np.mean([result["figures"]["parts"] for result in finding.results], axis=0)


def _mean_shares(finding: Finding, name: str) -> list[float]:
    return finding.over_seeds(lambda result: result["figures"]["mean"][name]["share"])


def _mean_share(finding: Finding, name: str) -> str:
    errors = finding.over_seeds(lambda result: result["figures"]["mean"][name]["standard_error"])
    return f"{_spread(_mean_shares(finding, name))} ({100 * _mean(errors):.2f})"


def _seconds(finding: Finding, key: str) -> str:
    return f"{_mean(finding.over_seeds(lambda result: result['seconds'][key])):,.0f}"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in %; the mean alone of a single value."""
    mean = f"{100 * _mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def row(*cells: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"
