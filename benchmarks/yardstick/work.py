"""One job, in a process of its own: `python -m yardstick.work ORDERS`.

The orders are JSON: the work `folder`, the `material` with its number of `texts`, and the `job`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yardstick.arms import PCA_ROWS, WIDTHS, bf16, recipe_of
from yardstick.caches import INIT, MAX_TOKENS, Material
from yardstick.ledger import Job, Ledger

if TYPE_CHECKING:
    from student.encoding import FloatArray
    from yardstick.ours import Encode


def carry_out(job: Job, material: Material, out: Path) -> dict[str, Any]:
    """Train what a job asks for, and measure it."""
    import torch

    from cli.console import quiet_libraries
    from teacher_cache.models import locate
    from yardstick import ours, theirs
    from yardstick.measure import FULL, measure, principal, with_principal
    from yardstick.shortlist import shortlist

    torch.set_num_threads(job.threads)
    quiet_libraries()
    reader = material.reader
    if job.of.recipe is not None:
        book = recipe_of(job.of, job.layers)
        encode, seconds, costs = ours.distil(
            book, reader, out, rate=job.rate, steps=job.steps, seed=job.seed, bf16=bf16(),
            resume=job.purpose == "long",
        )  # fmt: skip
        own = book.student.reduced_heads
    else:
        init, _ = locate(INIT, None, what="the student's init")
        encode, seconds, costs = theirs.distil(
            job.of.loss, reader, init, out, layers=job.layers, max_tokens=MAX_TOKENS,
            rate=job.rate, steps=job.steps.get("train", 0), seed=job.seed, bf16=bf16(),
        )  # fmt: skip
        own = {}
    result = {
        "seconds": asdict(seconds),
        "costs": {
            stage: {clock: asdict(cost) for clock, cost in of_stage.items()}
            for stage, of_stage in costs.items()
        },
    }
    if job.tasks is not None:
        missing = {name: width for name, width in WIDTHS.items() if name not in {FULL, *own}}
        if missing:
            rows = reader.train_rows[:PCA_ROWS]
            projections = principal(reader.vectors(rows).astype("float32"), [*missing.values()])
            encode = with_principal(encode, missing, projections)
        encode = remembering(encode)
        figures = measure(encode, material, job.tasks)
        result["figures"] = {**figures, "shortlist": shortlist(encode, material, job.tasks)}
    return result


def remembering(encode: Encode) -> Encode:
    """The same encoder, that gives the texts it had before as it gave them then."""
    known: dict[tuple[str, ...], dict[str, FloatArray]] = {}

    def vectors(texts: Sequence[str]) -> dict[str, FloatArray]:
        key = tuple(texts)
        if key not in known:
            known[key] = encode(texts)
        return known[key]

    return vectors


def _end_with_parent() -> None:
    """A job whose yardstick was killed would go on unseen, beside the one that begins it anew."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _end_with_parent()
    orders = json.loads(sys.argv[1])
    folder = Path(orders["folder"])
    material = Material(Path(orders["material"]), orders["texts"])
    job = Job(**{**orders["job"], "layers": tuple(orders["job"]["layers"])})
    ledger = Ledger(folder, material.name)
    out = folder / "runs" / ledger.file(job).stem
    ledger.keep(job, {"decided_by": job.decided_by(), **carry_out(job, material, out)})
    if job.purpose != "long":
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
