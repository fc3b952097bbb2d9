"""One training loop for every stage: it reads a stage's row and never asks which stage it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from accelerate import Accelerator
from torch import Tensor

from student import checkpoint
from student.batches import Batch, Order, batches
from student.closed_form import start_heads
from student.gather import gather
from student.losses import TeacherBatch, combined_loss
from student.model import Student, create, load
from student.run import METRICS_FILE, StageRun, finished, start_of, write_record
from student.spec import StudentError
from student.stages import FULL_HEAD, StageError, StageSpec, learning_rate_at
from teacher_cache.reader import CacheReader

Precision = Literal["auto", "fp32", "bf16"]
Metrics = dict[str, float]
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
    """

    precision: Precision = "auto"
    save_every: int = 500
    cpu: bool = False


def train(
    run: StageRun,
    reader: CacheReader,
    init: Path,
    *,
    settings: Settings = Settings(),
    on_step: OnStep = lambda _step, _metrics: None,
    phase: Phase = _silent,
) -> bool:
    """Train one stage, or finish one that was interrupted; False if it was done before.

    `init` is the folder of the untrained student's body. The global batch is divided among the
    processes of the launcher; its losses see all of it.

    Raises:
        StudentError: the run's folder, its start or its checkpoint belongs to something else.
        StageError: the stage does not fit the student or the processes, or its loss is no number.
    """
    if finished(run):
        return False
    accelerator = Accelerator(mixed_precision=_mixed_precision(settings), cpu=settings.cpu)
    if run.spec.batch_size % accelerator.num_processes:
        raise StageError(
            f"a global batch of {run.spec.batch_size} does not divide among "
            f"{accelerator.num_processes} processes"
        )
    start = start_of(run)
    student = _student(run, reader, init, start)
    trained = student.train_only(run.spec.trains)
    _check_heads_train(run.spec, student, trained)
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=run.spec.learning_rate,
        betas=run.spec.betas,
        weight_decay=run.spec.weight_decay,
    )
    student.to(accelerator.device)
    done = checkpoint.restore(run.checkpoints, trained, optimizer, run.facts())
    if done == 0:
        _solve_heads(run, reader, student, phase)
    model, optimizer = accelerator.prepare(student, optimizer)
    loop = _Loop(run, accelerator, student, model, optimizer, trained, settings.save_every, on_step)
    figures = loop.run(reader, done)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_record(run, reader, init, figures)
        aside = run.folder / ".model.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        student.save(aside)
        checkpoint.replace_folder(aside, run.model)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    accelerator.wait_for_everyone()
    return True


def _student(run: StageRun, reader: CacheReader, init: Path, start: Path | None) -> Student:
    width = reader.width(run.teachers)
    student = create(run.student, init, width, run.seed) if start is None else load(start)
    if student.spec != run.student:
        raise StudentError(
            f"the student in {start} is not the recipe's: it was made from {student.spec}; "
            "give the recipe it was trained with"
        )
    return student


def _solve_heads(run: StageRun, reader: CacheReader, student: Student, phase: Phase) -> None:
    """Every process solves for itself, from the same rows; the engine then agrees on one."""
    spec = run.spec
    if not spec.closed_form:
        return
    hidden: int = student.text.config.hidden_size  # type: ignore[union-attr, assignment]
    for head in spec.closed_form:
        if head != FULL_HEAD and student.head_widths[head] > hidden:
            raise StageError(
                f"{head} is {student.head_widths[head]} wide, the student's pooled state {hidden}: "
                "a closed form has at most as many directions"
            )
    rows = min(spec.closed_form_rows, len(reader.train_rows))
    with phase(f"solving {', '.join(spec.closed_form)}", rows) as advance:
        start_heads(
            student, reader, run.teachers, spec.closed_form,
            rows=rows, seed=run.seed, advance=advance,
        )  # fmt: skip


def _check_heads_train(spec: StageSpec, student: Student, trained: Mapping[str, Any]) -> None:
    reached = student.parameters_of(("text", *spec.heads))
    useless = sorted(set(trained) - set(reached))
    if useless:
        raise StageError(
            f"the stage trains {useless[0]} (and {len(useless) - 1} more), which none of its "
            f"losses reaches; heads with losses: {', '.join(spec.heads)}"
        )


def _mixed_precision(settings: Settings) -> str:
    if settings.precision == "auto":
        able = torch.cuda.is_available() and not settings.cpu and torch.cuda.is_bf16_supported()
        return "bf16" if able else "no"
    return {"fp32": "no", "bf16": "bf16"}[settings.precision]


@dataclass
class _Loop:
    """The state of a stage while it runs."""

    stage_run: StageRun
    accelerator: Accelerator
    student: Student
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    trained: Mapping[str, torch.nn.Parameter]
    save_every: int
    on_step: OnStep

    def run(self, reader: CacheReader, done: int) -> Metrics:
        """Run the steps that are left; give the figures of the whole."""
        run, accelerator = self.stage_run, self.accelerator
        order = Order(len(reader.train_rows), run.spec.batch_size, run.seed)
        source = batches(
            reader,
            self.student,
            order,
            range(done, run.spec.steps),
            teachers=None if run.teachers == reader.teachers else run.teachers,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.model.train()
        self.on_step(done, {})
        began = time.perf_counter()
        waited = 0.0
        metrics: Metrics = {}
        with _Log(run.folder, accelerator.is_main_process, done) as log:
            for step in range(done, run.spec.steps):
                asked = time.perf_counter()
                batch = next(source)
                waited += time.perf_counter() - asked
                metrics = self._step(step, batch)
                elapsed = time.perf_counter() - began
                metrics["samples_per_second"] = (step + 1 - done) * order.batch_size / elapsed
                metrics["data_wait"] = waited / elapsed
                last = step + 1 == run.spec.steps
                if (step + 1) % LOG_EVERY == 0 or last:
                    log.write(step + 1, metrics)
                self.on_step(step + 1, metrics)
                if ((step + 1) % self.save_every == 0 or last) and accelerator.is_main_process:
                    checkpoint.save(
                        run.checkpoints, step + 1, self.trained, self.optimizer, run.facts()
                    )
        return {"steps": run.spec.steps, "seconds": time.perf_counter() - began, **metrics}

    def _step(self, step: int, batch: Batch) -> Metrics:
        spec, accelerator = self.stage_run.spec, self.accelerator
        rate = learning_rate_at(spec, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        target = gather(batch.target.to(accelerator.device))
        with accelerator.autocast():
            outputs = self.model(batch.texts.to(accelerator.device), tuple(spec.heads))
        loss, metrics = _loss({n: gather(v) for n, v in outputs.items()}, target, spec)
        metrics["loss"] = loss.item()
        if not torch.isfinite(loss):
            rows = ", ".join(map(str, batch.rows[:8]))
            raise StageError(
                f"the loss of step {step + 1} is {metrics['loss']}: nothing was changed by it; "
                f"its rows begin {rows}; lower the learning rate or look at those texts"
            )
        # Every process has the same loss over all rows and gradients of its own rows only; the
        # engine averages them, which the factor undoes.
        accelerator.backward(loss * accelerator.num_processes)
        if spec.clip is not None:
            norm = accelerator.clip_grad_norm_(self.trained.values(), spec.clip)
            metrics["gradient_norm"] = float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics["learning_rate"] = rate
        return metrics


def _loss(outputs: Mapping[str, Tensor], target: Tensor, spec: StageSpec) -> tuple[Tensor, Metrics]:
    """The sum over the heads of Eq. 4, and its parts as `head.loss`."""
    teacher = TeacherBatch(target)
    totals: list[Tensor] = []
    parts: Metrics = {}
    for head, weights in spec.heads.items():
        total, terms = combined_loss(outputs[head], teacher, **weights.model_dump())
        totals.append(total)
        parts |= {f"{head}.{name}": value.item() for name, value in terms.items()}
    return torch.stack(totals).sum(), parts


class _Log:
    """The metrics of a stage as JSON lines and for TensorBoard; silent on other processes.

    A resumed stage drops the lines after its checkpoint: each step stands there once.
    """

    def __init__(self, folder: Path, active: bool, done: int) -> None:
        self.folder = folder
        self.active = active
        self.done = done

    def __enter__(self) -> _Log:
        self.lines: TextIO | None = None
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / METRICS_FILE
            kept = _lines_until(path, self.done)
            self.lines = path.open("w", encoding="utf-8")
            self.lines.writelines(kept)
            self.board = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=self.done + 1 if self.done else None
            )
        return self

    def write(self, step: int, metrics: Metrics) -> None:
        if self.lines is not None:
            self.lines.write(json.dumps({"step": step, **metrics}) + "\n")
            self.lines.flush()
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        if self.lines is not None:
            self.lines.close()
            self.board.close()


def _lines_until(path: Path, step: int) -> list[str]:
    if step == 0 or not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [line for line in lines if json.loads(line)["step"] <= step]
