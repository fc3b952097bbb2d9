"""One training loop for every stage: it reads a stage's row and never asks which stage it is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from student import checkpoint
from student.batches import Samples, batches, cached, states_of, texts_of
from student.closed_form import start_heads
from student.durable import remove_folder, replace_folder
from student.engine import Engine, Precision
from student.memory import peak_memory
from student.metrics import Log, last_line
from student.model import TEXT_FOLDER, Student, create, load
from student.order import Order
from student.plan import check_model
from student.pooled import Pooled, sample_differs, why_not
from student.probe import SCORE, Probe
from student.rows import rows_to_train_on
from student.run import START, StageRun, facts_of, finished, start_of, write_record
from student.seeing import CaptionStates, Seeing, image_side, passed_over, seen
from student.spec import StudentError
from student.stage_checks import check_processes
from student.stages import StageSpec
from student.step import Metrics, Step
from teacher_cache.reader import CacheReader

OnStep = Callable[[int, Metrics], None]
"""Told how many steps are done and the last one's figures (loss, learning rate, …): once before the
first step, with none, and after each."""
Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a phase of work before the steps: (what, how many) → a context told each advance."""


def _silent(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


LOG_EVERY = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """How a stage runs, as opposed to what it computes.

    `precision` auto is bf16 where the GPU has it, else fp32; losses and heads are fp32 always.
    `pooled`: whether heads train on the cache's pooled states where they are the frozen body's.
    """

    precision: Precision = "auto"
    save_every: int = 500
    cpu: bool = False
    pooled: Pooled = "auto"


def train(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    *,
    seeing: Seeing | None = None,
    settings: Settings = Settings(),
    restart: bool = False,
    on_step: OnStep = lambda _step, _metrics: None,
    phase: Phase = _silent,
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Train one stage, or finish one that was interrupted; False if it was done before.

    With `restart` it begins anew; what there is of it goes when the first step is about to be
    taken, and stays where anything is refused before that.

    `init` is the folder of the untrained student's body. The global batch is divided among the
    processes of the launcher; its losses see all of it. `seeing` is for stages that read images.
    `say` is told, in a line, what runs.

    Raises:
        StudentError: the run's folder, its start or its checkpoint belongs to something else.
        StageError: the stage does not fit the student or the processes, or its loss is no number.
    """
    known = facts_of(run, init)
    if not restart and finished(run, known):
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a run that was killed at its end
        return False
    engine = Engine.start(settings.precision, cpu=settings.cpu)
    check_processes(run.spec, engine.accelerator.num_processes)
    engine.check(run.spec)
    check_model(run, reader, init, seeing)
    start = start_of(run)
    states = _caption_states(run, init, start, seeing)
    kept_states = seeing is None and _kept_states(
        run, reader, init, known[START], engine, settings.pooled, say
    )
    say(_in_words(engine, run.spec))
    student = _student(run, reader, init, start, seeing, body=not kept_states)
    student.to(engine.accelerator.device)  # a closed form is solved where it is trained
    trained = student.train_only(run.spec.trains)
    if run.spec.gradient_checkpointing and not kept_states:
        student.compute_layers_again(trained)
    facts = {**known, "inputs": "pooled states" if kept_states else run.spec.reads}
    found = None if restart else checkpoint.newest(run.checkpoints, facts)
    if found is None:
        _solve_heads(run, reader, student, init, phase, kept_states=kept_states)
    else:
        found.overlay(student)
    changed = [*trained, *student.parameters_of(tuple(run.spec.closed_form))]
    engine.prepare(student, trained, run.spec)
    if found is not None:
        engine.load_optimizer(found.optimizer())
    if seeing is not None:
        samples = seen(seeing, student, states, run.folder, run.spec.micro_batch)
    else:
        inputs = (
            states_of(reader) if kept_states else texts_of(reader, student, run.spec.micro_batch)
        )
        rows = rows_to_train_on(reader, run.spec, run.teachers)
        teachers = None if run.teachers == reader.teachers else run.teachers
        samples = cached(reader, inputs, rows, teachers)
    loop = _Loop(
        run,
        engine,
        student,
        samples,
        facts,
        tuple(dict.fromkeys(changed)),
        settings,
        on_step,
        found,
    )
    metrics = loop.steps(reader, restart=restart)
    figures = {**engine.describes, "inputs": facts["inputs"], **metrics, "steps": run.spec.steps}
    figures["seconds"] = loop.seconds
    if seeing is not None:
        figures["images_passed_over"] = len(passed_over(run.folder))
        figures["pairs_skipped"] = seeing.pairs.skipped.rows
    if loop.best is not None:
        figures["best"] = asdict(loop.best)
    if engine.accelerator.is_main_process and loop.last is not None:
        chosen = checkpoint.best_of(loop.last) if run.spec.keep == "best" else loop.last
        write_record(run, reader, init, known, {**figures, "kept": chosen.step})
        _write_model(run, _student(run, reader, init, start, seeing), chosen)
    engine.accelerator.wait_for_everyone()
    return True


def _in_words(engine: Engine, spec: StageSpec) -> str:
    facts = engine.describes
    share = spec.batch_size // facts["processes"]
    return (
        f"engine: {facts['engine']}, {facts['processes']} × {facts['device']}, "
        f"{facts['precision']}; {spec.batch_size} {spec.reads} a step, {share} each"
    )


def _throw_away(folder: Path, engine: Engine) -> None:
    if engine.accelerator.is_main_process and folder.exists():
        place = folder.resolve()  # in a sweep, folders of stages are links
        remove_folder(place)
        place.mkdir()
    engine.accelerator.wait_for_everyone()


def _write_model(run: StageRun, student: Student, chosen: checkpoint.Checkpoint) -> None:
    """Where the stage started from, with what the checkpoint changed: the same for every engine."""
    chosen.overlay(student)
    aside = run.folder / ".model.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    student.save(aside)
    replace_folder(aside, run.model)
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _kept_states(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    known: str,
    engine: Engine,
    pooled: Pooled,
    say: Callable[[str], None],
) -> bool:
    """Whether the stage trains on the states that the cache keeps: the first process decides."""
    if pooled == "off":
        return False
    found: list[str | None] = [None]
    if engine.accelerator.is_main_process:
        found[0] = why_not(run, reader, known) or sample_differs(
            run, reader, init, engine.accelerator.device
        )
    reason = broadcast_object_list(found)[0]
    if reason is None:
        say("texts: not read; the heads train on the pooled states that the cache keeps")
        return True
    if pooled == "require":
        raise StudentError(f"--pooled require: {reason}; with --pooled auto the encoder runs")
    if reader.manifest.pooled is not None:
        say(f"texts: encoded at every step, since {reason}")
    return False


def _caption_states(
    run: StageRun, init: Path, start: Path | None, seeing: Seeing | None
) -> CaptionStates | None:
    if seeing is None or seeing.captions is None:
        return None
    text = init if start is None else start / TEXT_FOLDER
    return CaptionStates(seeing.captions, text, run.student)


def _student(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    start: Path | None,
    seeing: Seeing | None,
    *,
    body: bool = True,
) -> Student:
    width = reader.width(run.teachers)
    if start is None:
        student = create(run.student, init, width, run.seed, body=body)
    else:
        student = load(start)
    asked = run.student.vision
    if seeing is not None and asked is not None and student.vision is None:
        student.add_vision(image_side(seeing, student.hidden, asked, run.seed))
    if student.spec != run.student:
        raise StudentError(
            f"the student in {start} is not the recipe's: it was made from {student.spec}; "
            "give the recipe it was trained with"
        )
    return student


def _solve_heads(
    run: StageRun,
    reader: CacheReader,
    student: Student,
    init: Path,
    phase: Phase,
    *,
    kept_states: bool,
) -> None:
    """Every process solves for itself, from the same rows; the engine then agrees on one."""
    spec = run.spec
    if not spec.closed_form:
        return
    rows = min(spec.closed_form_rows, len(reader.train_rows))
    with phase(f"solving {', '.join(spec.closed_form)}", rows) as advance:
        start_heads(
            student, reader, run.teachers, spec.closed_form,
            rows=rows, seed=run.seed, init=init, teacher_weights=spec.teacher_weights,
            focus={head: weights.focus for head, weights in spec.heads.items()},
            kept_states=kept_states, advance=advance,
        )  # fmt: skip


@dataclass
class _Loop:
    """The steps of a stage. `changed` names what a checkpoint must hold; `last` is the newest one,
    which only the first process keeps up to date."""

    run: StageRun
    engine: Engine
    student: Student
    samples: Samples
    facts: Mapping[str, Any]
    changed: Sequence[str]
    settings: Settings
    on_step: OnStep
    last: checkpoint.Checkpoint | None
    best: checkpoint.Best | None = field(init=False)
    since: float = field(init=False)
    """When the first step would have begun, had nothing interrupted them."""

    @property
    def seconds(self) -> float:
        """How long the steps took, those before the checkpoint that was resumed from included."""
        return time.perf_counter() - self.since

    def steps(self, reader: CacheReader, *, restart: bool) -> Metrics:
        """Take the steps that are left; give the last one's metrics."""
        self.since = time.perf_counter() - (self.last.seconds if self.last else 0.0)
        run, accelerator = self.run, self.engine.accelerator
        done = self.last.step if self.last else 0
        self.best = self.last.best if self.last else None
        blocks = reader.blocks(run.teachers)
        source = batches(
            self.samples,
            _order(run, self.samples),
            range(done, run.spec.steps),
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        probe = Probe(self.samples, run.spec, blocks)
        take = Step(
            run.spec, accelerator, self.engine.model, self.engine.optimizer, self.engine.trained,
            blocks=blocks, hidden=self.student.hidden, seed=run.seed,
        )  # fmt: skip
        if restart:
            _throw_away(run.folder, self.engine)
        metrics: Metrics = last_line(run.folder) if done else {}
        self.engine.model.train()
        self.on_step(done, {})
        began = time.perf_counter()
        waited = 0.0
        with Log(run.folder, accelerator.is_main_process, done) as log:
            for step in range(done, run.spec.steps):
                # What a step draws is a function of (seed, step) too: no generator's state to keep.
                torch.manual_seed(_step_seed(run.seed, step, accelerator.process_index))
                asked = time.perf_counter()
                batch = next(source)
                waited += time.perf_counter() - asked
                metrics = take(step, batch)
                if probe.due(step + 1):
                    metrics |= probe(self.engine)
                elapsed = time.perf_counter() - began
                metrics["samples_per_second"] = (step + 1 - done) * run.spec.batch_size / elapsed
                metrics["data_wait"] = waited / elapsed
                metrics["peak_memory"] = peak_memory(accelerator.device)
                if (step + 1) % LOG_EVERY == 0 or step + 1 == run.spec.steps or SCORE in metrics:
                    log.write(step + 1, metrics)
                self.on_step(step + 1, metrics)
                self._keep(step + 1, metrics)
        return metrics

    def _keep(self, done: int, metrics: Metrics) -> None:
        """Write a checkpoint where one is due: at times, at the end, and of the best if asked."""
        spec = self.run.spec
        improved = SCORE in metrics and (self.best is None or self.best.is_below(metrics[SCORE]))
        if improved:
            self.best = checkpoint.Best(done, metrics[SCORE])
        due = done % self.settings.save_every == 0 or done == spec.steps
        if not due and not (improved and spec.keep == "best"):
            return
        weights = self.engine.weights(self.changed, self.student)
        optimizer = self.engine.optimizer_state()
        if self.engine.accelerator.is_main_process:
            self.last = checkpoint.save(
                self.run.checkpoints, done, weights, optimizer, self.facts,
                best=self.best, seconds=self.seconds,
            )  # fmt: skip


def _order(run: StageRun, samples: Samples) -> Order:
    return Order(
        rows=samples.train,
        batch_size=run.spec.batch_size,
        seed=run.seed,
        mode=run.spec.order,
        rows_per_shard=samples.rows_per_shard,
        window_shards=run.spec.window_shards,
    )


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> 1)
