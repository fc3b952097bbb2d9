"""Which share of a job this process has, from the launcher's environment. No collective is used."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from teacher_cache.files import temporary_file
from teacher_cache.format import CacheError

POLL_SECONDS = 0.5
"""How often a rank looks whether another has done what it waits for."""

SIGN_SECONDS = 10.0
"""How often rank 0, while others wait for it, shows that it lives."""

PATIENCE_SECONDS = 600.0
"""How long a rank waits without any such sign: nodes start minutes apart, and digest the teachers'
files first; a network file system may show a sign a minute late."""

_SIGN = "rank-0"

T = TypeVar("T")

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # accelerate launch, torchrun
    # srun. SLURM_NTASKS would not do: a batch script has it too, outside of any step.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True, slots=True)
class Rank:
    """Process `index` of `world`; `local` counts within its machine and picks the GPU."""

    index: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """Read what `accelerate launch`, `torchrun` or `srun` set; alone where none did.

        Raises:
            CacheError: the variables are not numbers of a possible job.
        """
        for index, world, local in _LAUNCHERS:
            if index in environment and world in environment:
                names = (environment[index], environment[world], environment.get(local, "0"))
                if not all(value.isdecimal() for value in names) or int(names[0]) >= int(names[1]):
                    raise CacheError(
                        f"expected {index} to be a number below {world}, "
                        f"found {index}={names[0]} {world}={names[1]} {local}={names[2]}"
                    )
                return cls(*map(int, names))
        return cls()


@contextmanager
def awaited(rank: Rank, cache: Path) -> Iterator[None]:
    """What others wait for is done inside: meanwhile, they are shown that this process lives."""
    if rank.world == 1:
        yield
        return
    done = threading.Event()

    def show(sign: Path) -> None:
        while not done.wait(SIGN_SECONDS):
            # Who waits reads no clock but its own, and looks only whether this number changes.
            sign.touch()

    with temporary_file(cache, _SIGN) as sign:
        thread = threading.Thread(target=show, args=(sign,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def wait_for(what: str, cache: Path, look: Callable[[], T | None]) -> T:
    """What `look` finds, as soon as it finds it: rank 0 is at work on it.

    Raises:
        CacheError: for `PATIENCE_SECONDS`, rank 0 has shown no sign of life.
    """
    sign: dict[str, int] = {}
    heard = time.monotonic()
    while True:
        found = look()
        if found is not None:
            return found
        if (now := _signs(cache)) != sign:
            sign, heard = now, time.monotonic()
        silent = time.monotonic() - heard
        if silent > PATIENCE_SECONDS:
            raise CacheError(
                f"waited for rank 0 to {what} {cache}, which has shown no sign of life for "
                f"{silent:.0f} s: see why it failed, and start all ranks again"
            )
        time.sleep(POLL_SECONDS)


def _signs(cache: Path) -> dict[str, int]:
    signs = {}
    for path in cache.glob(f".{_SIGN}.*.tmp"):
        with suppress(FileNotFoundError):
            signs[path.name] = path.stat().st_mtime_ns
    return signs
