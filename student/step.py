"""One step of training: forward, the losses over the batch, backward, the optimizer.

With `micro_batch` a body that trains runs twice. First without a graph, micro batch by micro batch,
for the vectors of the whole batch; the losses give each vector its gradient. Then once more with a
graph, each micro batch's vectors taking their gradients back through the body. What is in memory is
one micro batch's activations and the vectors; the sum of gradients is that of the plain step.

Shapes: b texts of this process, B of the global batch, H width of the pooled state, T target width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from student.batches import Batch, Target
from student.dropout import kept_columns
from student.gather import gather
from student.inputs import PooledBatch, StudentBatch, TextBatch
from student.losses import TeacherBatch, combined_loss
from student.model import POOLED
from student.schedule import learning_rate_at
from student.stages import FULL_HEAD, StageError, StageSpec
from student.targets import weigh
from teacher_cache.format import Block

Metrics = dict[str, float]
Part = tuple[TextBatch, Tensor | None]
"""The texts of a micro batch, and the factors of their pooled states."""


@dataclass(frozen=True, slots=True)
class Step:
    """Takes the steps of a stage. `model` and `optimizer` are as the engine prepared them.

    `blocks` are the target's; `hidden` is the width of the pooled state.
    """

    spec: StageSpec
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained: Mapping[str, nn.Parameter]
    blocks: Sequence[Block]
    hidden: int
    seed: int

    def __call__(self, step: int, batch: Batch) -> Metrics:
        """Take step `step` (counted from 0) on this process's share of its batch.

        Gives the loss and its parts, the learning rate, and the gradient's norm before clipping.

        Raises:
            StageError: the loss is no finite number; nothing was changed by it.
        """
        spec, accelerator = self.spec, self.accelerator
        rate = learning_rate_at(spec, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        texts = batch.texts.to(accelerator.device)
        target = targets_of(self.model, accelerator, batch.target, tuple(spec.heads))
        keep_bH = self._kept_columns(step)
        if isinstance(texts, PooledBatch) or not self._runs_twice:
            loss, metrics = self._losses(self._forward(texts, keep_bH), target)
            _refuse_no_number(step, batch, metrics)
            accelerator.backward(loss)
        else:
            parts = list(zip(texts.apart(), _apart(keep_bH, texts), strict=True))
            vectors = self._vectors_without_graph(parts)
            in_order = {name: part_bD[texts.order] for name, part_bD in vectors.items()}
            loss, metrics = self._losses(in_order, target)
            _refuse_no_number(step, batch, metrics)
            loss.backward()  # type: ignore[no-untyped-call]
            self._backward_in_parts(parts, vectors)
        norm = accelerator.clip_grad_norm_(self.trained.values(), spec.clip or math.inf)
        metrics["gradient_norm"] = float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics["learning_rate"] = rate
        return metrics

    @property
    def _runs_twice(self) -> bool:
        # A frozen body keeps nothing for a backward pass: its micro batches are only run.
        body_trains = any(name.startswith(("text.", "vision.")) for name in self.trained)
        return self.spec.micro_batch is not None and body_trains

    def _forward(self, texts: StudentBatch, keep_bH: Tensor | None) -> dict[str, Tensor]:
        learned_from = {target for weights in self.spec.heads.values() for target in weights.target}
        heads = dict.fromkeys([*self.spec.heads, *({FULL_HEAD} & learned_from)])
        with self.accelerator.autocast():
            vectors: dict[str, Tensor] = self.model(texts, tuple(heads), keep_bH)
        return vectors

    def _losses(
        self, vectors: Mapping[str, Tensor], target: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """What to take the gradient of, and the loss with its parts, alike in all processes."""
        spec, accelerator = self.spec, self.accelerator
        if not spec.gather:
            loss, metrics = total_loss(vectors, self._weighed(target), spec)
            own = torch.tensor(list(metrics.values()), device=accelerator.device)
            mean = accelerator.reduce(own, reduction="mean").tolist()
            return loss, dict(zip(metrics, mean, strict=True))
        every = {name: gather(vectors_bD) for name, vectors_bD in vectors.items()}
        every_target = {name: gather(target_bT) for name, target_bT in target.items()}
        loss, metrics = total_loss(every, self._weighed(every_target), spec)
        # Every process has the same loss over all rows and gradients of its own rows only; the
        # engine averages them, which the factor undoes.
        return loss * accelerator.num_processes, metrics

    def _weighed(self, target: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weighed(target, self.blocks, self.spec)

    def _vectors_without_graph(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The vectors of all parts, one after the other, as leaves that take a gradient."""
        with torch.no_grad():
            found = [self._forward(texts, keep_bH) for texts, keep_bH in parts]
        return {name: torch.cat([f[name] for f in found]).requires_grad_() for name in found[0]}

    def _backward_in_parts(self, parts: Sequence[Part], vectors: Mapping[str, Tensor]) -> None:
        sizes = [len(texts.order) for texts, _ in parts]
        gradients = {
            name: torch.split(vectors_bD.grad, sizes)
            for name, vectors_bD in vectors.items()
            if vectors_bD.grad is not None
        }
        for place, (texts, keep_bH) in enumerate(parts):
            last = place + 1 == len(parts)
            # Processes add up their gradients once, with the last part.
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                again = self._forward(texts, keep_bH)
                # Its gradient by a vector is the one that the losses gave to that vector.
                product = [(again[name] * g[place]).sum() for name, g in gradients.items()]
                self.accelerator.backward(torch.stack(product).sum())

    def _kept_columns(self, step: int) -> Tensor | None:
        if not self.spec.vector_dropout:
            return None
        return kept_columns(
            self.seed,
            step,
            rows=self.spec.batch_size,
            width=self.hidden,
            share=self.spec.vector_dropout,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        ).to(self.accelerator.device)


def _apart(keep_bH: Tensor | None, texts: TextBatch) -> Sequence[Tensor | None]:
    """The factors of each chunk's texts."""
    if keep_bH is None:
        return [None] * len(texts.chunks)
    by_chunk_bH = torch.empty_like(keep_bH)
    by_chunk_bH[texts.order] = keep_bH
    return torch.split(by_chunk_bH, [len(ids) for ids, _ in texts.chunks])


def _refuse_no_number(step: int, batch: Batch, metrics: Metrics) -> None:
    if not math.isfinite(metrics["loss"]):
        rows = ", ".join(map(str, batch.rows[:8]))
        raise StageError(
            f"the loss of step {step + 1} is {metrics['loss']}: nothing was changed by it; "
            f"its rows begin {rows}; lower the learning rate or look at those texts"
        )


TEACHERS = "teachers"


@torch.no_grad()
def targets_of(
    model: nn.Module, accelerator: Accelerator, target: Target, heads: tuple[str, ...]
) -> dict[str, Tensor]:
    """What a batch's target is in vectors: the `teachers`', or each head's own of the captions.

    A caption's pooled state counts as float16, as a cache keeps it: computed now or read, the
    target is the same.
    """
    if isinstance(target, Tensor):
        return {TEACHERS: target.to(accelerator.device)}
    captions = target.to(accelerator.device)
    with accelerator.autocast():
        if not isinstance(captions, PooledBatch):
            captions = PooledBatch(model(captions, (POOLED,))[POOLED].half())
        vectors: dict[str, Tensor] = model(captions, heads)
    return vectors


def weighed(
    target: Mapping[str, Tensor], blocks: Sequence[Block], spec: StageSpec
) -> Mapping[str, Tensor]:
    """The same targets, the teachers' by their weights."""
    if TEACHERS not in target:
        return target
    return {TEACHERS: weigh(target[TEACHERS], blocks, spec.teacher_weights)}


def total_loss(
    vectors: Mapping[str, Tensor], target: Mapping[str, Tensor], spec: StageSpec
) -> tuple[Tensor, Metrics]:
    """The sum or mean over the heads, each with its share, of Eq. 4, with the parts as `head.loss`.

    A head that learns from two targets has the sum of both, and parts as `head.target.loss`.
    `vectors` has fc1 where a head learns from it; `target` is as `targets_of` gives it.
    """
    batches = {name: TeacherBatch(target_BT) for name, target_BT in target.items()}
    if FULL_HEAD in vectors:
        own = TeacherBatch(vectors[FULL_HEAD])
    totals: list[Tensor] = []
    metrics: Metrics = {}
    for head, weights in spec.heads.items():
        for kind in weights.target:
            name = head if len(weights.target) == 1 else f"{head}.{kind}"
            equation = weights.model_dump(exclude={"target", "share"})
            teacher = own if kind == FULL_HEAD else batches[TEACHERS if kind == TEACHERS else head]
            total, parts = combined_loss(vectors[head], teacher, **equation)
            totals.append(weights.share * total)
            metrics |= {f"{name}.{loss}": value.item() for loss, value in parts.items()}
    loss = torch.stack(totals).sum()
    if spec.total == "mean":
        loss = loss / sum(weights.share for weights in spec.heads.values())
    return loss, {**metrics, "loss": loss.item()}
