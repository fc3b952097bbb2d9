"""Builds that die: a program of its own, in which every build is a forked process.

    python crashing.py FOLDER

It prints, as JSON, for every trial what came of it. Builders end by SIGKILL, or stop and go on, at
moments that a seed decides. What happens at every single step is tried in test_faults.
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
from forks import died, ended, forked
from jobs import ROWS_PER_SHARD, contents, corpus, lsa, make, write_corpus
from machines import another_machine

from teacher_cache.format import MANIFEST_FILE
from teacher_cache.ranks import Rank
from teacher_cache.reader import CacheReader
from teacher_cache.verify import verify

# Two fitted teachers: no torch, so that forks are safe and a build takes a tenth of a second.
TEACHERS = [lsa(name="left", width=4, sample=12), lsa(name="right", width=3, sample=13)]
TEXTS = 2 * ROWS_PER_SHARD + 5


def build_into(cache: Path, rank: Rank | None = None) -> None:
    make(cache, corpus(cache.parent, texts=TEXTS), TEACHERS, rank=rank)


def differences(cache: Path, undisturbed: dict[str, bytes]) -> list[str]:
    found = contents(cache)
    names = sorted({*found, *undisturbed})
    return [name for name in names if found.get(name) != undisturbed.get(name)]


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


def together(folder: Path, seed: int, *, ranks: int) -> dict[str, object]:
    """Four builders of one cache, on a machine each, share its shards or compete for all of them.

    Now and then one is killed, and another begins in its place, or one is stopped, to be woken when
    the cache is finished. What then changes?
    """
    rng = random.Random(seed)
    cache = folder / f"{'shared' if ranks > 1 else 'competed'}-{seed}"
    started: dict[int, int] = {}

    def start(index: int) -> None:
        machine = len(started) % 7

        def work() -> None:
            with another_machine(machine):
                build_into(cache, Rank(index % ranks, ranks))

        started[forked(work)] = index

    for index in range(4):
        start(index)
    running, stopped = set(started), set[int]()
    kills = 0
    while running:
        time.sleep(0.02 * rng.random())
        running -= {process for process in running if ended(process)}
        if running and kills + len(stopped) < 9:
            victim = rng.choice(sorted(running))
            if len(stopped) < 2 and rng.random() < 0.3 and ranks == 1:
                os.kill(victim, signal.SIGSTOP)
                stopped.add(victim)
                running.discard(victim)
            elif rng.random() < 0.4:
                os.kill(victim, signal.SIGKILL)
                died(victim)
                kills += 1
                running.discard(victim)
                start(started[victim])
                running.add(max(started, key=list(started).index))
    if not (cache / MANIFEST_FILE).exists():
        # The last of them saw a shard in the hands of one that was killed. Not in this process: it
        # forks again, and a fork inherits the locks of torch's threads but not the threads.
        assert not died(forked(partial(build_into, cache)))
    before = named(contents(cache))
    for process in stopped:
        os.kill(process, signal.SIGCONT)
        assert not died(process)
    reader = CacheReader(cache)
    return {
        "kills": kills,
        "stopped": len(stopped),
        "changed": differences(cache, before),
        "problems": verify(reader),
        "texts": reader.texts(range(len(reader)))
        == CacheReader(folder / "whole").texts(range(TEXTS)),
    }


def named(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but files that never got their name."""
    return {name: data for name, data in files.items() if ".tmp" not in name}


def competing(folder: Path) -> list[dict[str, object]]:
    """Each of four builders means to build it all."""
    return [together(folder, seed, ranks=1) for seed in range(6)]


def sharing(folder: Path) -> list[dict[str, object]]:
    """Four ranks, as a launcher starts them."""
    return [together(folder, seed, ranks=4) for seed in range(3)]


TRIALS = (again_and_again, competing, sharing)

if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_corpus(place)
    assert not died(forked(partial(build_into, place / "whole")))
    json.dump({trial.__name__: trial(place) for trial in TRIALS}, sys.stdout)
