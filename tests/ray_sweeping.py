"""A sweep on a Ray of this machine alone, of whose workers one is killed: a program of its own.

    python ray_sweeping.py FOLDER

FOLDER holds a cache, a recipe and `sweep.toml`. It prints, as JSON on its last line, how the
command ended, how many workers were killed, and where the cluster listened.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from ray_building import ancestors, listening, parents_of_all

from cli.train import main


def workers() -> list[int]:
    """The processes of this program's own cluster that do a stage run."""
    parents, found = parents_of_all(), []
    for pid in parents:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::_perform"):
                found.append(pid)
    return [pid for pid in found if os.getpid() in ancestors(pid, parents)]


def kill_one(out: Path, killed: list[int], places: list[str], done: threading.Event) -> None:
    """Kill a worker as soon as one has written a checkpoint."""
    while not done.is_set() and not list(out.glob("runs/*/stage-1/checkpoints/step-*")):
        time.sleep(0.002)
    for pid in workers()[:1]:
        places[:] = listening()
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    killed: list[int] = []
    places: list[str] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_one, args=(folder / "ray", killed, places, done))
    killer.start()
    sys.argv = [
        "jasper-train", "sweep", str(folder / "sweep.toml"), "--cache", str(folder / "cache"),
        "--out", str(folder / "ray"), "--cpu", "--engine", "ray", "--workers", "2",
        "--save-every", "2",
    ]  # fmt: skip
    try:
        main()
    except SystemExit as end:
        done.set()
        killer.join()
        json.dump({"code": end.code, "killed": len(killed), "listening": places}, sys.stdout)
