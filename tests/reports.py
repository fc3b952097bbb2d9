"""What reports are made of: files as evaluation and sweep write them, runs, texts that bite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from student.report.neighbours import BINS
from student.report.records import (
    Arm,
    Curve,
    Density,
    Evaluation,
    Look,
    Neighbour,
    Recall,
    Report,
    Run,
    Sample,
    Stage,
    Sweep,
)  # fmt: skip
from student.stages import STAGES

BITES = (
    '<script>window.bitten = 1</script><img src="http://example.org/x.png" onerror="bitten=1">'
    "</style></svg><a href='javascript:bitten=1'>\u202egnp.\x00\x1b &amp; ]]> --> $x_2$ #1b5fb0"
)
"""A text of a corpus, at its worst: markup, addresses, control characters, what plots' code has."""

TEACHERS = ("all teachers", "left", "right")


def evaluation(shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    """An evaluation.json, in which every figure is another one."""
    widths = {"init": 32, "fc1": 20, "fc1[:8]": 8, "fc2": 6, "fc3": 4, "fc4": 3}
    measures = ("cosine", "spearman", "pair_order", "recall@1", "recall@10")
    figures: dict[str, Any] = {}
    for i, vector in enumerate(widths):
        for j, teacher in enumerate(TEACHERS):
            for k, measure in enumerate(measures):
                value = round(0.3 + 0.02 * i + 0.13 * j + 0.003 * k + shift, 4)
                missing = measure == "cosine" and vector != "fc1"
                by = figures.setdefault(vector, {}).setdefault(teacher, {})
                by[measure] = None if missing else value
    asymmetric = {"fc1": {name: {"recall@1": 0.41, "recall@10": 0.52} for name in TEACHERS[1:]}}
    task = {"task": "questions", "kind": "retrieval", "measure": "ndcg@10", "vector": "fc1"}
    tasks = [
        {**task, "of": "student", "score": 0.611, "standard_error": 0.012},
        {**task, "of": "left", "score": 0.733},
        {**task, "of": "student", "score": 0.587, "instruction": "find the answer"},
    ]
    record = {"stage": 3, "cache": "c0ffee", "rows": 48, "widths": widths, "retention": figures,
              "asymmetric": asymmetric, "tasks": tasks}  # fmt: skip
    return {**record, **changes}


def results(**changes: Any) -> dict[str, Any]:
    """A results.json of three arms over three seeds, of which one differs significantly."""

    def figures(mean: float, difference: float | None) -> dict[str, Any]:
        each = {
            "mean": mean,
            "sd": 0.004,
            "values": [mean - 0.004, mean, mean + 0.004],
            "difference": difference,
            "p": None if difference is None else 0.5 if abs(difference) < 0.01 else 0.003,
            "significant": difference is not None and abs(difference) >= 0.01,
        }
        return {
            vector: {teacher: {"spearman": each, "recall@10": each} for teacher in TEACHERS}
            for vector in ("fc1", "fc2", "init")
        }

    arms = [
        {"arm": "paper", "settings": {}, "figures": figures(0.75, None)},
        {"arm": "no relative loss", "settings": {"stages.1.heads.fc1.relative": 0},
         "runs": {"0": "runs/x"}, "figures": figures(0.747, -0.003)},
        {"arm": "one teacher", "settings": {"teachers": ["left"]}, "figures": figures(0.71, -0.04)},
    ]  # fmt: skip
    record = {"sweep": "losses", "question": "Which losses matter?", "cache": "c0ffee",
              "baseline": "paper", "seeds": [0, 1, 2], "rows": 48, "arms": arms}  # fmt: skip
    return {**record, **changes}


def write_sweep(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results(**changes)))
    return folder


def made_run(
    name: str = "a",
    *,
    text: str = "plain",
    stages: Sequence[int] = (3, 4),
    points: int = 30,
    shift: float = 0.0,
) -> Run:
    """A run as `collect` gives it, stage 3 measured and stage 4 with its recall.

    `text` stands in its names.
    """

    def curve(start: float) -> Curve:
        steps = list(range(10, 10 * points + 1, 10))
        return Curve(steps=steps, values=[start * math.exp(-step / 500) + 0.1 for step in steps])

    found = []
    for number in stages:
        heads = ["fc1"] if number < 3 else ["fc1", "fc2", "fc3", "fc4"]
        curves = {f"{head}.{loss}": curve(1 + 0.1 * turn) for turn, head in enumerate(heads)
                  for loss in ("cosine", "similarity", "relative")}  # fmt: skip
        curves |= {f"probe.{head}.order": curve(0.5) for head in heads}
        curves |= {name: curve(2.0) for name in ("loss", "probe.loss", "learning_rate",
                                                 "samples_per_second", "data_wait")}  # fmt: skip
        block = {"teacher": f"left {text}", "width": 12, "repository": text, "licence": text}
        record = {
            "cache": "c0ffee", "teachers": [f"left {text}", "right"], "seed": 0, "number": number,
            "student": {"init": text, "layers": [0, 2], "max_tokens": 24},
            "stage": {**STAGES[number].outcome(), "purpose": f"purpose {text}", "steps": 300},
            "trained_heads": heads, "blocks": [block, {**block, "teacher": "right"}],
            "figures": {"seconds": 12.4, "processes": 1, "device": "cpu", "peak_memory": 7.2e8,
                        "steps": 300, "inputs": "texts", "precision": "fp32"},
            "versions": {"python": "3", "torch": text},
            **({"images": "beef"} if number == 4 else {}),
        }  # fmt: skip
        recall = {head: {way: [0.2, 0.5, 0.7] for way in ("image to text", "text to image")}
                  for head in ("pooled", *heads)}  # fmt: skip
        measured = evaluation(shift) if number == 3 else None
        found.append(
            Stage(
                number=number,
                folder=Path("runs", name, f"stage-{number}"),
                finished=True,
                record=record,
                curves=curves,
                evaluation=None if measured is None else Evaluation.model_validate(measured),
                recall=Recall(pairs=40, captions=8, at=[1, 5, 10], recall=recall)
                if number == 4
                else None,
            )
        )
    return Run(name=name, path=Path("runs", name), stages=found)


def made_look(run: str, text: str = "plain") -> Look:
    """A look whose texts are `text`."""
    neighbours = [Neighbour(row=i, text=f"{i} {text}", cosine=0.9 - i / 10, agrees=i % 2 == 0)
                  for i in range(5)]  # fmt: skip
    grid = [[(i * j) % 7 for i in range(BINS)] for j in range(BINS)]
    return Look(
        run=run, rows=48, vector="fc1",
        densities=[Density(teacher=f"{teacher} {text}", vector=vector, counts=grid,
                           teacher_range=(-0.2, 0.9), student_range=(0.0, 1.0),
                           spearman=0.62, pairs=1128)
                   for teacher, vector in (("all", "init"), ("all", "fc1"), ("left", "fc1"))],
        samples=[Sample(row=i, text=text, teacher=neighbours, student=neighbours[::-1])
                 for i in range(6)],
    )  # fmt: skip


def whole(text: str = "plain") -> Report:
    """A report with every section there is; `text` stands wherever a stranger's words may."""
    sweep = Sweep.model_validate(results(sweep=text, question=text))
    arms = [*sweep.arms, Arm(arm=text, settings={text: text}, figures=sweep.arms[0].figures)]
    return Report(
        runs=[made_run(f"a {text}", text=text)],
        sweeps=[sweep.model_copy(update={"arms": arms, "path": Path("sweep")})],
        looks=[made_look(f"a {text}", text)],
    )
