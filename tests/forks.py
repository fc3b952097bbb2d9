"""Work in processes of its own, which a trial may kill."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

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


def killed_at(moment: int, work: Work, folder: Path) -> Work:
    """The same work, killed when a file of the folder is named for that time, counted from 1."""

    def doomed() -> None:
        seen = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in ("os.rename", "os.link") and str(arguments[0]).startswith(str(folder)):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        work()

    return doomed
