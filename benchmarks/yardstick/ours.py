"""An arm of ours: the stages of a recipe, run as `jasper-train` runs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cli.recipe import Recipe
from student.encoding import FloatArray, encode, unit
from student.engine import Precision
from student.model import load
from student.run import FRESH, StageRun
from student.stage_checks import check
from student.train import Settings, train
from teacher_cache.models import locate
from teacher_cache.reader import CacheReader
from yardstick.budget import Cost
from yardstick.stopwatch import Seconds, Stopwatch

Costs = dict[str, dict[str, Cost]]
"""By stage and clock."""
Encode = Callable[[Sequence[str]], dict[str, FloatArray]]

SAVE_EVERY = 200


def distil(
    book: Recipe,
    reader: CacheReader,
    out: Path,
    *,
    rate: float,
    steps: Mapping[str, int],
    seed: int,
    bf16: bool,
    resume: bool,
) -> tuple[Encode, Seconds, Costs]:
    """Train a recipe's stages; give the student's encoder, what it took, and each stage's cost.

    `rate` is the largest learning rate of all stages; the others keep their proportion to it.
    What a stage looks at without learning from it (held-out rows) is left out, for it is no work of
    the recipe. With `resume` a training that was killed goes on, else it begins anew.
    """
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    factor = rate / max(book.stage(int(number)).learning_rate for number in steps)
    costs: Costs = {}
    seconds = Seconds()
    run = None
    init, _ = locate(book.student.init, book.student.revision, what="the student's init")
    precision: Precision = "bf16" if bf16 else "fp32"
    settings = Settings(precision=precision, cpu=True, save_every=SAVE_EVERY if resume else 10**9)
    for number, count in steps.items():
        run = _stage(book, reader, out, int(number), count, factor, seed, before=run)
        watch = Stopwatch(out / f"stage-{number}.seconds")
        train(run, reader, init, settings=settings, on_step=watch.step, phase=watch.solving)
        costs[number] = watch.costs
        seconds += watch.taken
    assert run is not None
    heads = ("fc1", *book.student.reduced_heads)
    student = load(run.model)

    def vectors(texts: Sequence[str]) -> dict[str, FloatArray]:
        found = encode(student, texts, heads)
        return {head: unit(found[head]) for head in heads}

    return vectors, seconds, costs


def _stage(
    book: Recipe,
    reader: CacheReader,
    out: Path,
    number: int,
    steps: int,
    factor: float,
    seed: int,
    *,
    before: StageRun | None,
) -> StageRun:
    spec = book.stage(number)
    changes = {"steps": steps, "learning_rate": spec.learning_rate * factor}
    if spec.keep == "last":
        changes["probe_every"] = 0
    spec = spec.model_copy(update=changes)
    width = reader.width()
    widths = {"fc1": width, **book.student.reduced_heads}
    check(spec, widths, width, len(reader.train_rows), reader.teachers)
    return StageRun(
        out=out,
        stage=number,
        spec=spec,
        student=book.student.text_side,
        identity=reader.identity,
        teachers=reader.teachers,
        seed=seed,
        init_from=FRESH if before is None else str(before.folder),
    )
