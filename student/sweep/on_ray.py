"""A sweep's stage runs on a Ray cluster: a task each, begun when the one before it has ended.

Folder, cache and student's model must lie where every node sees them. A task whose worker dies is
started again, and goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from student.metrics import last_line
from student.run import StageRun
from student.sweep.runner import Job, Tell, attempt
from student.sweep.spec import SweepError
from student.sweep.waiting import Waiting

RETRIES = 3
"""How often a stage run is started again after its worker died."""

_LOOK_AROUND_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class OnRay:
    """An `Engine` of `student.sweep.runner`. `ray` is the module, connected to a cluster.

    `gpus` is what a stage run takes of them: 1, a part of one that several then share, or 0 for a
    CPU core alone (None: 1 where the cluster has GPUs). `workers` is the most stage runs at a time.
    """

    ray: Any
    gpus: float | None = None
    workers: int | None = None

    def __call__(self, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[str, str | None]]:
        """Do the jobs.

        Raises:
            SweepError: the cluster has no room for even one.
        """
        found = self.ray.cluster_resources()
        gpus = float(bool(found.get("GPU"))) if self.gpus is None else self.gpus
        kind, each = ("GPU", gpus) if gpus else ("CPU", 1.0)
        room = int(found.get(kind, 0) / each)
        if room < 1:
            raise SweepError(
                f"a stage run takes {each:g} {kind}, the cluster has {found.get(kind, 0):g}; "
                "start a node that has more, or give another --gpus"
            )
        most = min(room, self.workers or room)
        task = self.ray.remote(_perform).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
        waiting = Waiting(jobs)
        running: dict[Any, Job] = {}
        while waiting or running:
            while len(running) < most and (job := waiting.next()) is not None:
                running[task.remote(job)] = job
            ended, _ = self.ray.wait(list(running), num_returns=1, timeout=_LOOK_AROUND_SECONDS)
            for answer in ended:
                yield from waiting.ended(running.pop(answer).key, self._problem(answer))
            for job in running.values():
                tell(job.key, _steps_done(job.planned.run), "")

    def _problem(self, answer: Any) -> str | None:
        try:
            problem: str | None = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError:
            raise  # a bug, with its remote traceback
        except self.ray.exceptions.RayError as error:
            return f"its worker died {RETRIES + 1} times; the last: {error}"
        return problem


def _perform(job: Job) -> str | None:
    return attempt(job, lambda _key, _done, _note: None)


def _steps_done(run: StageRun) -> int:
    """By the log of a stage that another process trains: its last line may be half written."""
    try:
        return int(last_line(run.folder).get("step", 0))
    except ValueError:
        return 0
