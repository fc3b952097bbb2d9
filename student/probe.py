"""Looks at a stage while it trains, on a fixed sample of held-out rows.

A training loss falls while a student gets no better at ranking texts; two figures on unseen texts
show it, and choose the step to keep where a stage asks for the best.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from student.batches import Inputs
from student.engine import Engine
from student.evaluate import order_agreement, unit
from student.gather import gather
from student.stages import FULL_HEAD, StageError, StageSpec
from student.step import total_loss
from student.targets import weigh
from teacher_cache.reader import CacheReader

SCORE = "probe.score"
_BATCH = 64
_LEAST = 3


class Probe:
    """The sample, and what a stage's heads score on it.

    It has `spec.probe_rows` rows, evenly spaced over the held-out ones, or all there are; the
    processes share them.

    Raises:
        StageError: the stage is to keep its best, and there is nothing to choose it by.
    """

    def __init__(
        self, reader: CacheReader, inputs: Inputs, spec: StageSpec, teachers: tuple[str, ...]
    ) -> None:
        held_out = reader.held_out_rows
        self.every = spec.probe_every if len(held_out) >= _LEAST else 0
        if not self.every and spec.keep == "best":
            raise StageError(
                f"keep = 'best' asks for looks at held-out rows; probe_every is {spec.probe_every} "
                f"and {reader.path} has {len(held_out)} such rows (corpus.held_out in its recipe)"
            )
        self.spec = spec
        count = min(spec.probe_rows, len(held_out))
        self.rows = np.asarray(held_out)[np.linspace(0, len(held_out) - 1, count).astype(int)]
        self.inputs = inputs
        self.reader = reader
        self.teachers = teachers

    def due(self, done: int) -> bool:
        """Whether to look after so many steps: every `probe_every`, and at the end."""
        return bool(self.every) and (done % self.every == 0 or done == self.spec.steps)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> dict[str, float]:
        """Measure the heads that the stage trains: all processes must call it.

        Gives `probe.HEAD.order` (Spearman's correlation of all pairwise similarities with the
        target's), for FC1 `probe.fc1.cosine` (the mean cosine with the target), `probe.loss` (the
        stage's loss, the sample as one batch) and `probe.score`, the mean of the orders.
        """
        learned_from = {target for weights in self.spec.heads.values() for target in weights.target}
        heads = tuple(dict.fromkeys([*self.spec.heads, *({FULL_HEAD} & learned_from)]))
        accelerator = engine.accelerator
        share = -(-len(self.rows) // accelerator.num_processes)
        # Under sharding all processes must make the same calls: the last share is filled up.
        padded = np.resize(self.rows, share * accelerator.num_processes)
        mine = padded[accelerator.process_index * share :][:share]
        engine.model.eval()
        parts = []
        for start in range(0, share, _BATCH):
            batch = self.inputs(mine[start : start + _BATCH]).to(accelerator.device)
            with accelerator.autocast():
                parts.append(engine.model(batch, heads))
        engine.model.train()
        vectors = {
            head: gather(torch.cat([part[head] for part in parts]))[: len(self.rows)]
            for head in heads
        }
        return self._figures(
            {head: vectors_nD.float().cpu() for head, vectors_nD in vectors.items()}
        )

    def _figures(self, vectors: dict[str, Tensor]) -> dict[str, float]:
        stored = torch.from_numpy(self.reader.vectors(self.rows, self.teachers))
        blocks = self.reader.blocks(self.teachers)
        target = weigh(stored, blocks, self.spec.teacher_weights).float()
        loss = total_loss(vectors, target, self.spec)[1]["loss"]
        exact = unit(target.numpy())
        units = {head: unit(vectors[head].numpy()) for head in self.spec.heads}
        orders = {f"probe.{head}.order": order_agreement(v, exact) for head, v in units.items()}
        figures = {**orders, "probe.loss": loss, SCORE: float(np.mean(list(orders.values())))}
        if FULL_HEAD in units:
            cosines = np.einsum("nd,nd->n", units[FULL_HEAD], exact)
            figures[f"probe.{FULL_HEAD}.cosine"] = float(cosines.mean())
        return figures
