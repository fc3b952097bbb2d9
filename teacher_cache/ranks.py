"""Which share of a job this process has, from the launcher's environment. No collective is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from teacher_cache.format import CacheError

POLL_SECONDS = 0.5
"""How often a rank looks whether another has done what it waits for."""

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
