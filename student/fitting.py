"""A reduced head from the teachers' vectors alone: no text is read and no body runs.

FC1 gives the teachers' vectors, so what fewer columns can keep of their similarities is a question
to the cache: the linear map under which the cached vectors stay as near to each other as they are.
Under Eq. 2 their principal part is nearly that; with a focus on near texts it is not, and is found
by descent, in seconds. FC1 followed by the map is a head.

Shape suffixes: N rows, B rows of a step, T target width, D reduced width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from student.losses import TeacherBatch, similarity_loss

STEPS = 1000
BATCH = 512
LEARNING_RATE = 1e-2
START_ROWS = 65_536
"""Rows, the first ones, whose principal directions the map begins as."""


def fitted(
    target_NT: NDArray[np.floating], width: int, focus: float | None, seed: int
) -> NDArray[np.float64]:
    """The map [D, T] from the teachers' vectors to narrower ones.

    It begins as their principal directions, and takes `STEPS` steps of Adam on the similarity loss
    of random batches. The same rows and seed give the same map. Vectors stay as they are stored:
    beside them memory holds `START_ROWS` of them in fp32.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors_NT = torch.from_numpy(target_NT)
    map_DT = _principal(vectors_NT[:START_ROWS], width, seed).requires_grad_()
    optimizer = torch.optim.Adam([map_DT], lr=LEARNING_RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        rows_B = torch.randperm(len(vectors_NT), generator=generator)[:BATCH]
        batch = TeacherBatch(vectors_NT[rows_B])
        loss = similarity_loss(batch.unit_BT @ map_DT.T, batch, focus)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return map_DT.detach().double().numpy()


def _principal(vectors_NT: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """The directions [D, T] along which the vectors are longest, about 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # where the iteration begins
        _, _, directions_TD = torch.svd_lowrank(vectors_NT.float(), q=width, niter=4)
    return directions_TD.T.contiguous()
