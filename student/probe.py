"""Looks at a stage while it trains, on a fixed sample of held-out rows.

A training loss falls while a student gets no better at ranking texts; two figures on unseen texts
show it, and choose the step to keep where a stage asks for the best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from student.batches import Samples
from student.encoding import unit
from student.engine import Engine
from student.evaluation.retention import order_agreement
from student.gather import gather
from student.stages import FULL_HEAD, LEAST_TEXTS, StageError, StageSpec
from student.step import TEACHERS, targets_of, total_loss, weighed
from teacher_cache.format import Block

SCORE = "probe.score"
_BATCH = 64


class Probe:
    """The sample, and what a stage's heads score on it.

    It has `spec.probe_rows` rows, evenly spaced over the held-out ones, or all there are; the
    processes share them.

    Raises:
        StageError: the stage is to keep its best, and there is nothing to choose it by.
    """

    def __init__(self, samples: Samples, spec: StageSpec, blocks: Sequence[Block]) -> None:
        held_out = samples.held_out
        self.every = spec.probe_every if len(held_out) >= LEAST_TEXTS else 0
        if not self.every and spec.keep == "best":
            raise StageError(
                f"keep = 'best' asks for looks at held-out rows; probe_every is {spec.probe_every} "
                f"and {samples.where} has {len(held_out)} such rows (held_out in its recipe)"
            )
        self.spec = spec
        count = min(spec.probe_rows, len(held_out))
        self.rows = held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]
        self.samples = samples
        self.blocks = blocks

    def due(self, done: int) -> bool:
        """Whether to look after so many steps: every `probe_every`, and at the end."""
        return bool(self.every) and (done % self.every == 0 or done == self.spec.steps)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> dict[str, float]:
        """Measure the heads that the stage trains: all processes must call it.

        Gives `probe.HEAD.order` (Spearman's correlation of all pairwise similarities with the
        target's), `probe.HEAD.cosine` (the mean cosine with the target, for FC1 and where a caption
        is the target), `probe.loss` (the stage's loss, the sample as one batch) and
        `probe.score`, the mean of the orders.
        """
        learned_from = {target for weights in self.spec.heads.values() for target in weights.target}
        heads = tuple(dict.fromkeys([*self.spec.heads, *({FULL_HEAD} & learned_from)]))
        accelerator = engine.accelerator
        share = -(-len(self.rows) // accelerator.num_processes)
        # Under sharding all processes must make the same calls: the last share is filled up.
        padded = np.resize(self.rows, share * accelerator.num_processes)
        mine = padded[accelerator.process_index * share :][:share]
        engine.model.eval()
        parts, target_parts = [], []
        for start in range(0, share, _BATCH):
            texts, target = self.samples.of(mine[start : start + _BATCH])
            target_parts.append(
                targets_of(engine.model, accelerator, target, tuple(self.spec.heads))
            )
            with accelerator.autocast():
                parts.append(engine.model(texts.to(accelerator.device), heads))
        engine.model.train()
        return self._figures(self._whole(parts), self._whole(target_parts))

    def _whole(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The rows of all processes, without what a share was filled up with."""
        return {
            name: gather(torch.cat([part[name] for part in parts]))[: len(self.rows)].float().cpu()
            for name in parts[0]
        }

    def _figures(self, vectors: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, float]:
        target = weighed(targets, self.blocks, self.spec)
        loss = total_loss(vectors, target, self.spec)[1]["loss"]
        exact = {name: unit(values.numpy()) for name, values in target.items()}
        figures: dict[str, float] = {}
        orders = []
        for head in self.spec.heads:
            own = exact[TEACHERS if TEACHERS in exact else head]
            found = unit(vectors[head].numpy())
            orders.append(order_agreement(found, own))
            figures[f"probe.{head}.order"] = orders[-1]
            if head == FULL_HEAD or TEACHERS not in exact:
                figures[f"probe.{head}.cosine"] = float(np.einsum("nd,nd->n", found, own).mean())
        return {**figures, "probe.loss": loss, SCORE: float(np.mean(orders))}
