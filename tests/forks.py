"""Work in processes of its own, which a trial may kill."""

import os
import traceback
from collections.abc import Callable

Work = Callable[[], None]


def forked(work: Work) -> int:
    """Start work in a process of its own."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def died(process: int) -> bool:
    """Wait for a process: whether it was killed. One that fails otherwise ends the trial."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed, see above"
    return False


def ended(process: int) -> bool:
    """Whether a process came to its end by itself, without waiting for it."""
    done, status = os.waitpid(process, os.WNOHANG)
    assert not done or status == 0, "the work failed, see above"
    return done != 0
