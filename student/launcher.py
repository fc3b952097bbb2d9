"""What a launcher asked for, read from the variables that it sets. No torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from student.spec import StudentError

Name = Literal["one process", "DDP", "FSDP2", "ZeRO-2"]

_UNUSED = ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING", "ACCELERATE_USE_MEGATRON_LM")


def asked_for() -> Name:
    """The engine that the launcher asks for, by the variables that it sets.

    Raises:
        StudentError: an engine, or a part of one, that is not used here or not installed.
    """
    for name in _UNUSED:
        if _flag(name):
            raise StudentError(f"the launcher asks for {name}, which is not used here; turn it off")
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        if find_spec("deepspeed") is None:
            raise StudentError(
                "the launcher asks for DeepSpeed, which is not installed; install it with pip "
                "install 'jasper-distill[deepspeed]', or launch with recipes/accelerate/fsdp.yaml"
            )
        return "ZeRO-2"
    if _flag("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "2") != "2":
            raise StudentError("the launcher asks for FSDP 1; set fsdp_version: 2 (see recipes/)")
        return "FSDP2"
    return "DDP" if started() > 1 else "one process"


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def started() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))
