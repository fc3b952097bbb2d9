"""Which option steadies the loss of stage 4, and what does it do to recall on unseen captions?

    make demo                        # makes the student of stage 3 in .demo
    python benchmarks/vision.py --report benchmarks/results/vision-HARDWARE-DATE.md
    python benchmarks/vision.py --images CAPTIONS.jsonl        # real pictures, named in that file

Every arm continues the same student with the same fresh vision encoder and the same order of pairs,
but for one option; of the recipe's own stage 4 only the learning rate counts. The loss that is
followed is the paper's three, the mean over the heads, whatever else the arm adds to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reports import publish

from cli.console import note, quiet_libraries
from cli.recipe import Recipe, load
from data.pairs import Pairs
from data.pairs_spec import PairsSpec
from student.evaluation.images import measure
from student.model import load as load_student
from student.run import StageRun, read_record
from student.seeing import Seeing
from student.stages import PAPER_WEIGHTS, stage
from student.train import Settings, train
from teacher_cache.reader import CacheReader

HEADS = ("fc1", "fc2", "fc3", "fc4")
CONTRASTIVE = {"heads": {head: {"contrastive": 1.0} for head in HEADS}}
POOLER = {"trains": ["vision", "pooler"]}
ARMS: Mapping[str, tuple[float, dict[str, Any]]] = {
    "as it is: 5 % warm-up, norm at most 1": (1, {}),
    "no warm-up": (1, {"warmup": 0.0}),
    "no clipping": (1, {"clip": float("inf")}),
    "neither warm-up nor clipping": (1, {"warmup": 0.0, "clip": float("inf")}),
    "20 % warm-up": (1, {"warmup": 0.2}),
    "contrastive term, weight 1": (1, CONTRASTIVE),
    "the pooler's projection trains": (1, POOLER),
    "a third of the rate": (1 / 3, {}),
    "3 × the rate": (3, {}),
    "3 × the rate, neither warm-up nor clipping": (3, {"warmup": 0.0, "clip": float("inf")}),
    "3 × the rate, 20 % warm-up": (3, {"warmup": 0.2}),
    "3 × the rate, contrastive term": (3, CONTRASTIVE),
}
"""What each arm multiplies the recipe's learning rate by, and what it changes of the stage."""

WINDOW = 5
"""Steps on either side whose median is the loss that a step is held against."""

JUMP = 1.25
"""A step whose loss is that many times the median around it counts as a jump."""


@dataclasses.dataclass(frozen=True)
class Course:
    """What an arm's training was like: figures of its losses and gradients, and its recall."""

    loss: float
    roughness: float
    jumps: float
    norms: float
    recall: Mapping[str, Sequence[float]]


def paper_loss(metrics: Mapping[str, float]) -> float:
    """The three losses with the paper's weights, the mean over the heads."""
    weights = PAPER_WEIGHTS.model_dump(include={"cosine", "similarity", "relative"})
    of_heads = [sum(w * metrics[f"{head}.{loss}"] for loss, w in weights.items()) for head in HEADS]
    return float(np.mean(of_heads))


def course(losses: Sequence[float], norms: Sequence[float]) -> dict[str, float]:
    """Behind the first fifth, in which every loss falls: how it moves around itself."""
    values = np.array(losses)
    centres = np.arange(len(values) // 5, len(values) - WINDOW)
    around = np.array([np.median(values[i - WINDOW : i + WINDOW + 1]) for i in centres])
    ratio = values[centres] / around
    late = np.array(norms)[centres]
    return {
        "loss": float(values[-max(1, len(values) // 10) :].mean()),
        "roughness": float(np.std(ratio)),
        "jumps": float(np.mean(ratio > JUMP)),
        "norms": float(np.quantile(late, 0.95) / np.median(late)),
    }


def trained(
    name: str, seed: int, book: Recipe, before: Path, pairs: Pairs, reader: CacheReader, steps: int
) -> Course:
    factor, own = ARMS[name]
    rate = factor * book.stage(4).learning_rate
    changes = {"learning_rate": rate, **own, "steps": steps, "probe_every": 0}
    assert book.student.vision is not None
    projection = "pooler" in changes.get("trains", ())
    vision = book.student.vision.model_copy(update={"projection": projection})
    record = read_record(before)
    losses: list[float] = []
    norms: list[float] = []

    def on_step(done: int, metrics: dict[str, float]) -> None:
        if done:
            losses.append(paper_loss(metrics))
            norms.append(metrics["gradient_norm"])

    with tempfile.TemporaryDirectory() as out:
        run = StageRun(
            out=Path(out), stage=4, spec=stage(4, changes),
            student=book.student.model_copy(update={"vision": vision}),
            identity=reader.identity, teachers=tuple(record["teachers"]), seed=seed,
            init_from=str(before), images=pairs.identity,
        )  # fmt: skip
        train(
            run, reader, Path(record["init_path"]), seeing=Seeing(pairs, None),
            settings=Settings(precision="fp32", cpu=True, save_every=10**9), on_step=on_step,
        )  # fmt: skip
        found = measure(load_student(run.model), pairs, pairs.held_out, HEADS)["recall"]["fc1"]
    return Course(**course(losses, norms), recall=found)


def line(name: str, runs: Sequence[Course]) -> str:
    def of(values: Sequence[float], digits: int, unit: str = "") -> str:
        scale = 100 if unit else 1
        mean = f"{scale * statistics.mean(values):.{digits}f}{unit}"
        if len(values) < 2:
            return mean
        return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"

    cells = [
        of([run.loss for run in runs], 2),
        of([run.roughness for run in runs], 1, " %"),
        of([run.jumps for run in runs], 1, " %"),
        of([run.norms for run in runs], 1),
    ]
    for direction in ("image to text", "text to image"):
        at = [of([run.recall[direction][i] for run in runs], 1, " %") for i in range(3)]
        cells.append(" / ".join(at))
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path(".demo/run"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.toml"))
    parser.add_argument("--images", type=Path, help="pairs in place of the recipe's")
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", type=int, nargs="*", help="numbers of arms, from 0; all of them")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    book, base = load(options.recipe)
    assert book.images is not None
    spec = book.images
    if options.images is not None:
        spec = PairsSpec(path=str(options.images.resolve()), held_out=0.1)
    pairs = Pairs(spec, base)
    before = options.run / "stage-3"
    reader = CacheReader(read_record(before)["cache_path"])
    names = [name for i, name in enumerate(ARMS) if i in (options.arms or range(len(ARMS)))]
    rows = []
    for name in names:
        runs = []
        for seed in range(options.seeds):
            runs.append(trained(name, seed, book, before, pairs, reader, options.steps))
            note(f"{name}, seed {seed}: loss {runs[-1].loss:.3f}, {runs[-1].recall}")
        rows.append(line(name, runs))
    captions = len(set(pairs.captions(pairs.held_out)))
    what = options.images.parent.name if options.images else "drawings"
    publish(
        [
            f"# Which option steadies the loss of stage 4? ({what})",
            "",
            f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), "
            f"{torch.get_num_threads()} used. Python {platform.python_version()}, torch "
            f"{torch.__version__}.",
            f"Command: `python benchmarks/vision.py {' '.join(sys.argv[1:])}`",
            "",
            f"{len(pairs.train):,} pairs to train on, {len(pairs.held_out):,} held out with "
            f"{captions} captions; {options.steps} steps of {book.stage(4).batch_size}, rate "
            f"{book.stage(4).learning_rate:g} and {options.seeds} seeds (mean ± standard "
            "deviation). "
            "Loss: the mean of the last tenth of the steps. Roughness: the standard deviation of a "
            f"step's loss over the median of the {2 * WINDOW + 1} steps around it, and jumps the "
            f"share of steps above {JUMP} times that, behind the first fifth. Norms: the 95th "
            "percentile of the gradient norms over their median. Recall of FC1 at 1 / 5 / 10; by "
            f"chance recall@1 is {1 / captions:.1%} from images to captions.",
            "",
            "| arm | loss | roughness | jumps | norms | image → text | text → image |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ],
        options.report,
    )


if __name__ == "__main__":
    main()
