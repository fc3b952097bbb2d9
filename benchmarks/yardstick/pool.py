"""Jobs in processes of their own, some at a time, with the time that is left on standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.console import note
from yardstick.caches import Material
from yardstick.ledger import Job, Ledger

HERE = Path(__file__).parent.parent
EVERY = 30.0
"""Seconds between two lines while nothing ends."""


@dataclass
class Pool:
    """Runs what the ledger lacks. A process has as many threads as its job says, and no more.

    `later` is what follows these jobs, in seconds of one process, for the time that is left.
    """

    ledger: Ledger
    material: Material
    parallel: int
    later: float = 0.0
    _taken: float = 0.0
    _expected: float = 0.0

    def results(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The results of these jobs, in their order, each done now or before.

        Raises:
            SystemExit: one has failed; what the others have finished stays.
        """
        waiting = [job for job in jobs if self.ledger.find(job) is None]
        running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
        shown = time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel:
                    job = waiting.pop(0)
                    running[self._start(job)] = job, time.monotonic()
                time.sleep(0.2)
                now = time.monotonic()
                for process in [p for p in running if p.poll() is not None]:
                    job, began = running.pop(process)
                    what = self._end(process, job, now - began)
                    note(f"{what} | {self._left(waiting, running.values())}")
                    shown = now
                if running and now - shown >= EVERY:
                    names = ", ".join(job.name for job, _ in running.values())
                    note(f"running: {names} | {self._left(waiting, running.values())}")
                    shown = now
        finally:
            for process in running:
                process.terminate()
                process.wait()
        found = [self.ledger.find(job) for job in jobs]
        return [result for result in found if result is not None]

    def _left(self, waiting: Iterable[Job], running: Iterable[tuple[Job, float]]) -> str:
        """The time left: what jobs were expected to take, at the pace of those that ended."""
        pace = self._taken / self._expected if self._expected else 1.0
        now = time.monotonic()
        seconds = pace * (self.later + sum(job.seconds for job in waiting))
        seconds += sum(max(0.0, pace * job.seconds - (now - began)) for job, began in running)
        return f"about {seconds / self.parallel / 60:.0f} min left"

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        log = self._log(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(job.threads)
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        orders = {
            "folder": str(self.ledger.folder),
            "material": str(self.material.folder),
            "texts": self.material.texts,
            "job": asdict(job),
        }
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "yardstick.work", json.dumps(orders)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def _log(self, job: Job) -> Path:
        return self.ledger.folder / "logs" / f"{self.ledger.file(job).stem}.log"

    def _end(self, process: subprocess.Popen[bytes], job: Job, seconds: float) -> str:
        """What a job has found, in words."""
        result = self.ledger.find(job)
        if process.returncode == 0 and result is None:
            raise SystemExit(f"{job.name}: recipe or code changed while it ran; run this again")
        if result is None:
            tail = self._log(job).read_text(errors="replace").splitlines()[-20:]
            raise SystemExit("\n".join([*tail, f"{job.name} failed; all of it: {self._log(job)}"]))
        self._taken += seconds
        self._expected += job.seconds
        figures = result.get("figures")
        share = f"{figures['mean']['fc1']['share']:.2%} of the teacher, " if figures else ""
        return (
            f"{job.name}: {share}{result['seconds']['cpu']:.0f} CPU seconds of training, "
            f"{seconds:.0f} s in all"
        )
