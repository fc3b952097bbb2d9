"""Builds that die: a program of its own, in which every build is a forked process.

    python crashing.py FOLDER

It prints, as JSON, for every trial one entry per death: what was left behind, and which files
differ from an undisturbed build's after one more. An audit hook kills the process by SIGKILL when a
file is written but has not got its name yet.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

# Imported here, so that no fork pays for them again.
import sklearn.decomposition
import sklearn.feature_extraction.text  # noqa: F401
from forks import Work, died, forked
from jobs import ROWS_PER_SHARD, contents, copy, corpus, lsa, make, write_corpus
from shard_files import shard_file

from teacher_cache.format import read_json, record_path
from teacher_cache.ranks import Rank

# Two fitted teachers: no torch, so that forks are safe and a build takes a tenth of a second.
TEACHERS = [lsa(name="left", width=4, sample=12), lsa(name="right", width=3, sample=13)]
TEXTS = 2 * ROWS_PER_SHARD + 5


def build_into(cache: Path, rank: Rank | None = None) -> None:
    make(cache, corpus(cache.parent, texts=TEXTS), TEACHERS, rank=rank)


def killed_at(moment: int, work: Work, cache: Path) -> Work:
    """The same work, ended by SIGKILL at the given call, counted from 1."""

    def doomed() -> None:
        seen = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            named = event in ("os.rename", "os.link")
            if named and str(arguments[0]).startswith(str(cache)):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        work()

    return doomed


def differences(cache: Path, undisturbed: dict[str, bytes]) -> list[str]:
    found = contents(cache)
    names = sorted({*found, *undisturbed})
    return [name for name in names if found.get(name) != undisturbed.get(name)]


def every_call(folder: Path) -> list[dict[str, object]]:
    """Die at the first call, at the second, …; go on once each time."""
    undisturbed = contents(folder / "whole")
    deaths: list[dict[str, object]] = []
    while True:
        cache = folder / f"at-{len(deaths) + 1}"
        if not died(forked(killed_at(len(deaths) + 1, partial(build_into, cache), cache))):
            assert not differences(cache, undisturbed)
            return deaths
        left = sorted(contents(cache))
        assert not died(forked(partial(build_into, cache)))
        deaths.append({"left": left, "differs": differences(cache, undisturbed)})


def again_and_again(folder: Path) -> list[dict[str, object]]:
    """Die after a random time, again and again, until a build comes through."""
    undisturbed = contents(folder / "whole")
    began = time.monotonic()
    assert not died(forked(partial(build_into, folder / "timed")))
    longest = time.monotonic() - began
    deaths: list[dict[str, object]] = []
    for seed in range(4):
        rng = random.Random(seed)
        cache = folder / f"seed-{seed}"
        died_at = []
        while True:
            process = forked(partial(build_into, cache))
            # Each build gets longer on average than the one before, so that one comes through.
            time.sleep(longest * rng.random() * (0.5 + 0.3 * len(died_at)))
            os.kill(process, signal.SIGKILL)
            if not died(process):
                break
            died_at.append(len(contents(cache)))
        deaths.append({"left": died_at, "differs": differences(cache, undisturbed)})
    return deaths


def lost_shard(folder: Path) -> list[dict[str, object]]:
    """Die while a lost shard of a finished cache is written again, after other records of it."""
    undisturbed = contents(folder / "whole")
    deaths: list[dict[str, object]] = []
    while True:
        cache = copy(folder / "whole", folder / f"lost-{len(deaths)}")
        shard_file(cache, 1).unlink()
        checksum = read_json(record_path(cache, 1))["checksum"]
        for path in (record_path(cache, 1), cache / "manifest.json"):
            path.write_text(path.read_text().replace(checksum, checksum[::-1]))
        finished = not died(forked(killed_at(len(deaths) + 1, partial(build_into, cache), cache)))
        assert not died(forked(partial(build_into, cache)))
        deaths.append({"left": [], "differs": differences(cache, undisturbed)})
        if finished:
            return deaths


def two_ranks(folder: Path) -> list[dict[str, object]]:
    """Two processes share one build, as a launcher starts them; the second begins first."""
    undisturbed = contents(folder / "whole")
    cache = folder / "shared"

    def rank(index: str) -> Work:
        def work() -> None:
            os.environ.update({"RANK": index, "WORLD_SIZE": "2", "LOCAL_RANK": index})
            build_into(cache, Rank.from_environment())

        return work

    processes = [forked(rank("1")), forked(rank("0"))]
    for process in processes:
        assert not died(process)
    return [{"left": [], "differs": differences(cache, undisturbed)}]


TRIALS = (every_call, again_and_again, lost_shard, two_ranks)

if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_corpus(place)
    assert not died(forked(partial(build_into, place / "whole")))
    json.dump({trial.__name__: trial(place) for trial in TRIALS}, sys.stdout)
