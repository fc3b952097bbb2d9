"""How many steps fill a budget of CPU time.

Arms are compared at equal work, and wall time on a machine that others use is noise. So each arm is
timed in CPU seconds of a process with one thread, by a short calibration and then by the trials of
its learning rates, and gets the steps that fill the budget: the run itself is a fixed number of
steps, and can be repeated. CPU seconds vary too, by some percent from one minute to the next, with
what others do to caches and clocks: the report says what each training took. Several threads wait
for each other at full speed, so that their CPU time says little: what they do is budgeted by the
clock, and wants a machine for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage costs in seconds: before its first step (heads solved), and a step."""

    before: float
    step: float


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """What a stage costs on the mean of several timings."""
    return Cost(fmean(cost.before for cost in costs), fmean(cost.step for cost in costs))


def steps_that_fill(
    seconds: float, costs: Mapping[str, Cost], lengths: Mapping[str, int]
) -> dict[str, int]:
    """Steps of each stage: as many as fit into the budget, in the proportions of `lengths`.

    Every stage has at least one step.

    Raises:
        SystemExit: what comes before the steps is more than the budget.
    """
    left = seconds - sum(cost.before for cost in costs.values())
    if left <= 0:
        raise SystemExit(
            f"the budget is {seconds:.0f} seconds, and solving the heads takes "
            f"{seconds - left:.0f}: give more, or fewer closed_form_rows in the recipe"
        )
    whole = sum(costs[stage].step * length for stage, length in lengths.items())
    return {stage: max(1, math.floor(left / whole * n)) for stage, n in lengths.items()}


def work_of(costs: Mapping[str, Cost], steps: Mapping[str, int]) -> float:
    """The seconds that so many steps are expected to take."""
    return sum(costs[stage].before + costs[stage].step * count for stage, count in steps.items())
