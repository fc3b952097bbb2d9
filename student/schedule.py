"""The learning rate of each step."""

from __future__ import annotations

import math

from student.stages import StageSpec


def learning_rate_at(spec: StageSpec, step: int) -> float:
    """The learning rate of step `step` (counted from 0): linear warm-up, then the schedule."""
    warm = round(spec.warmup * spec.steps)
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - warm) / max(1, spec.steps - warm)
    if spec.schedule == "linear":
        return spec.learning_rate * (1 - progress)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
