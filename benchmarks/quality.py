"""Which recipe keeps most of a teacher for the same work?

Distils all-MiniLM-L6-v2 into students of three and of two of its layers, on the same texts and for
the same CPU time: by sentence-transformers' own recipe, by its EmbedDistillLoss, by the paper's
recipe, by cosine alone and by our default. Each arm's learning rate is tuned on the tasks of `dev`;
what is reported are other tasks, that no arm has seen, as shares of the teacher's score.

    python benchmarks/quality.py --corpora DIR                        # under two hours on two cores
    python benchmarks/quality.py --corpora DIR --quick                # a quarter of an hour
    python benchmarks/quality.py --corpora DIR --only default --dev   # while improving a recipe
    python benchmarks/quality.py --corpora DIR --only --long 60       # an hour for the default
    python benchmarks/quality.py --corpora DIR --variants             # one thing changed at a time

DIR holds oewn/, standardebooks/, wikitext2/ and wiki-split/ as `yardstick/texts.py` reads them.
Kill it at any time: the same command goes on from the trainings that are done. A recipe or code
that has changed is trained anew, all else stays. Improve recipes under --dev: who chooses by the
tasks that are reported, reports too much.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from reports import publish
from yardstick.arms import ARMS, VARIANTS, arm_of, lengths_of, own_rate
from yardstick.budget import Cost, mean_cost, steps_that_fill
from yardstick.caches import Material, prepare
from yardstick.ledger import Job, Ledger
from yardstick.pool import Pool
from yardstick.stopwatch import WARM
from yardstick.summary import Finding, Setting, report
from yardstick.tried import tried
from yardstick.tuning import FIRST, best_rate, next_rates

from cli.console import phase, quiet_libraries

Layers = tuple[int, ...]

Rates = dict[float, float]
Student = tuple[str, Layers]
"""An arm and the layers that its student keeps."""

TIMED = 12
"""Steps of each stage that a calibration times."""

# For the time that is left. About so many seconds go into the start of a process, the calibration
# of a stage, and the vectors of one text.
START, TIMING, ENCODING = 15.0, 15.0, 0.0025


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: `budget` and `tuning` in CPU seconds of one thread.

    Learning rates are a few, the same for all, and each arm's own; with `widen` as many more as it
    takes for the best to lie between two others.
    """

    texts: int
    queries: int
    dev_queries: int
    students: tuple[Layers, ...]
    seeds: int
    budget: float
    tuning: float
    widen: bool

    def material(self, options: argparse.Namespace, *, whole: bool = False) -> Material:
        """What is trained on and asked: of so many texts, or of the whole corpora."""
        return prepare(
            options.work, options.corpora, texts=None if whole else self.texts,
            queries=self.queries, dev_queries=self.dev_queries, phase=phase,
        )  # fmt: skip


FULL = Size(
    texts=60_000, queries=3000, dev_queries=1500, students=((0, 1, 5), (0, 5)), seeds=3,
    budget=200, tuning=60, widen=True,
)  # fmt: skip
QUICK = Size(
    texts=16_000, queries=1000, dev_queries=500, students=((0, 1, 5),), seeds=1,
    budget=60, tuning=30, widen=False,
)  # fmt: skip


@dataclass
class Yardstick:
    """The measurement, step by step; what is done already is taken from the ledger."""

    size: Size
    pool: Pool
    tasks: Literal["dev", "test"]

    def compare(self, arms: list[str]) -> list[Finding]:
        """Everything that is asked of these arms."""
        students = [(arm, layers) for layers in self.size.students for arm in arms]
        trained = [student for student in students if arm_of(student[0]).trains]
        final = sum(self._final_seconds(arm) * self._seeds(arm) for arm, _ in students)
        self.pool.later = final + len(trained) * len(FIRST) * self._trial_seconds
        self.pool.results([self.timing(*student) for student in trained])
        self.pool.later = final
        rates = self.tuned(trained)
        jobs = {student: self.final(student, rates.get(student, {})) for student in students}
        self.pool.later = 0.0
        # Seed by seed, so that what is stopped early has something of every arm.
        self.pool.results([job for row in zip_longest(*jobs.values()) for job in row if job])
        return [
            Finding(*student, rates.get(student, {}), found[0], self.pool.results(found))
            for student, found in jobs.items()
        ]

    def beside(self, variants: list[str]) -> list[Finding]:
        """The default and what was tried beside it, for the first student, at their own rates."""
        layers = self.size.students[0]
        students = [(arm, layers) for arm in ("default", *variants)]
        self.pool.later = sum(self._final_seconds(arm) * self.size.seeds for arm, _ in students)
        self.pool.results([self.timing(*student) for student in students])
        jobs = {student: self.final(student, {}) for student in students}
        self.pool.later = 0.0
        self.pool.results([job for row in zip(*jobs.values(), strict=True) for job in row])
        return [
            Finding(*student, {}, found[0], self.pool.results(found))
            for student, found in jobs.items()
        ]

    def timing(self, arm: str, layers: Layers, threads: int = 1) -> Job:
        """The job that calibrates an arm."""
        steps = dict.fromkeys(lengths_of(arm_of(arm), layers), WARM + TIMED)
        seconds = START + TIMING * len(steps)
        return Job("calibrate", arm, layers, FIRST[1], steps, threads=threads, seconds=seconds)

    def steps(self, student: Student, seconds: float, timed: list[Job]) -> dict[str, int]:
        """The steps that fill so many seconds, by what these jobs took.

        Seconds are of CPU time, or by the clock where the jobs have several threads.
        """
        clock = "cpu" if timed[0].threads == 1 else "wall"
        found = [result["costs"] for result in self.pool.results(timed)]
        costs = {
            stage: mean_cost([Cost(**timing[stage][clock]) for timing in found])
            for stage in found[0]
        }
        return steps_that_fill(seconds, costs, lengths_of(arm_of(student[0]), student[1]))

    def tuned(self, students: list[Student]) -> dict[Student, Rates]:
        """The scores of the learning rates tried."""
        scores: dict[Student, Rates] = {student: {} for student in students}
        while True:
            tries = [
                [(student, rate) for rate in self._rates_to_try(student, scores[student])]
                for student in students
            ]
            # One of each arm at a time: an hour in which the machine is slow is everybody's.
            asked = [each for row in zip_longest(*tries) for each in row if each]
            if not asked:
                return scores
            jobs = [self._trial(*student, rate) for student, rate in asked]
            for (student, rate), found in zip(asked, self.pool.results(jobs), strict=True):
                scores[student][rate] = found["figures"]["mean"]["fc1"]["share"]

    def final(self, student: Student, rates: Rates) -> list[Job]:
        """The jobs that are reported, one a seed, at the best of the rates tried."""
        arm, layers = student
        steps: dict[str, int] = {}
        if arm_of(arm).trains:
            # Trials are longer than a calibration, and more: what a step costs varies.
            timed = [self._trial(*student, rate) for rate in rates] or [self.timing(*student)]
            steps = self.steps(student, self.size.budget, timed)
        rate = best_rate(rates) if rates else own_rate(*student)
        seconds = self._final_seconds(arm)
        return [
            Job("train", arm, layers, rate, steps, seed, tasks=self.tasks, seconds=seconds)
            for seed in range(self._seeds(arm))
        ]

    def _rates_to_try(self, student: Student, scores: Rates) -> tuple[float, ...]:
        return () if scores and not self.size.widen else next_rates(scores, own_rate(*student))

    def _trial(self, arm: str, layers: Layers, rate: float) -> Job:
        steps = self.steps((arm, layers), self.size.tuning, [self.timing(arm, layers)])
        seconds = self._trial_seconds
        return Job("tune", arm, layers, rate, steps, tasks="dev", seconds=seconds)

    def _seeds(self, arm: str) -> int:
        return self.size.seeds if arm_of(arm).trains else 1

    @property
    def _trial_seconds(self) -> float:
        return START + self.size.tuning + 4 * ENCODING * self.size.dev_queries

    def _final_seconds(self, arm: str) -> float:
        measuring = 4 * ENCODING * self.size.queries
        return START + measuring + (self.size.budget if arm_of(arm).trains else 0.0)


def long_run(yardstick: Yardstick, material: Material, minutes: float, cores: int) -> Finding:
    """The default for so many minutes of these cores, on all texts, at the rate found before."""
    layers = yardstick.size.students[0]
    student = ("default", layers)
    yardstick.pool.results([yardstick.timing(*student)])
    rates = yardstick.tuned([student])[student]
    ledger = Ledger(yardstick.pool.ledger.folder, material.name)
    alone = replace(yardstick, pool=Pool(ledger, material, parallel=1))
    steps = alone.steps(student, 60 * minutes, [alone.timing(*student, threads=cores)])
    seconds = START + 60 * minutes + 4 * ENCODING * yardstick.size.queries
    job = Job(
        "long", *student, best_rate(rates), steps, tasks=yardstick.tasks, threads=cores,
        seconds=seconds,
    )  # fmt: skip
    # Another pool: the pace of a calibration, which is mostly loading, says nothing of this one.
    return Finding(*student, rates, job, Pool(ledger, material, parallel=1).results([job]))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of whatever asks the yardstick's tasks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, default=Path(".quality"), help="what is done so far")
    parser.add_argument("--quick", action="store_true", help="fewer texts, queries and trainings")
    parser.add_argument("--dev", action="store_true", help="ask the tasks to choose by")
    parser.add_argument("--report", type=Path, help="file to write the report to")
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", nargs="*", choices=[*ARMS], metavar="ARM", help=f"of {', '.join(ARMS)}"
    )
    parser.add_argument(
        "--variants", nargs="*", choices=[*VARIANTS], metavar="NAME",
        help="instead, what was tried beside the default (all of it, or so named)",
    )  # fmt: skip
    parser.add_argument("--long", type=float, metavar="MINUTES", help="train the default so long")
    parser.add_argument("--budget", type=float, help="CPU seconds of a training")
    parser.add_argument("--seeds", type=int, help="trainings of each arm")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a thread each")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    budget = size.budget if options.variants is None else size.budget / 2
    seeds = size.seeds if options.variants is None else min(size.seeds, 2)
    size = replace(size, budget=options.budget or budget, seeds=options.seeds or seeds)
    quiet_libraries()
    short = size.material(options)
    pool = Pool(Ledger(options.work, short.name), short, options.jobs)
    chosen = options.dev or options.variants is not None
    yardstick = Yardstick(size, pool, "dev" if chosen else "test")
    longest = None
    if options.variants is not None:
        findings = yardstick.beside(options.variants or list(VARIANTS))
    else:
        findings = yardstick.compare(list(ARMS) if options.only is None else options.only)
        if options.long:
            longest = long_run(
                yardstick, size.material(options, whole=True), options.long, options.jobs
            )
    setting = Setting(
        command="python benchmarks/quality.py " + shlex.join(sys.argv[1:]),
        material=short, jobs=options.jobs, tasks=yardstick.tasks, budget=size.budget,
        tuning=size.tuning,
    )  # fmt: skip
    figures: dict[str, Any] = {
        "setting": {**asdict(setting), "material": short.name},
        "findings": [asdict(finding) for finding in [*findings, *([longest] if longest else [])]],
    }
    path = options.work / "figures.json"
    path.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    lines = (
        report(setting, findings, longest) if options.variants is None else tried(setting, findings)
    )
    publish(lines, options.report)
    print(f"all figures: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
