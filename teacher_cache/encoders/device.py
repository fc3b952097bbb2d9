"""Whether there is such a device: asked before a build plans for hours what it cannot encode."""

from __future__ import annotations

from teacher_cache.teachers import TeacherError

CPU = "cpu"


def check_device(device: str) -> None:
    """Use a device once. Loads torch for any but the CPU.

    Raises:
        TeacherError: there is no device of that name here, or nothing can be computed on it.
    """
    if device == CPU:
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    # What torch raises says little of it: AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        count = torch.cuda.device_count()
        here = ["cpu", *(f"cuda:{number}" for number in range(count))]
        raise TeacherError(
            f"the device {device!r} cannot be used: {str(error).partition(chr(10))[0]}; expected "
            f"one of {', '.join(here)}: give it with --device"
        ) from None
