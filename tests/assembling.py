"""Joins, merges and exports that die: a program of its own, in which each is a forked process.

    python assembling.py FOLDER

It prints, as JSON, for every trial one entry per death: what was left behind, and which files
differ from an undisturbed call's after one more. The process is killed by SIGKILL when a file is
written but has not got its name yet.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from crashing import TEACHERS, TEXTS, differences
from forks import died, forked, killed_at
from jobs import contents, corpus, lsa, made, write_corpus

from teacher_cache.export import export
from teacher_cache.join import join
from teacher_cache.merge import merge
from teacher_cache.reader import CacheReader


def every_call(
    folder: Path, name: str, work_into: Callable[[Path], object]
) -> list[dict[str, object]]:
    """Die at the first call, at the second, …; go on once each time."""
    work_into(folder / name)
    undisturbed = contents(folder / name)
    deaths: list[dict[str, object]] = []
    while True:
        out = folder / f"{name}-{len(deaths) + 1}"

        def work(out: Path = out) -> None:
            work_into(out)

        if not died(forked(killed_at(len(deaths) + 1, work, out))):
            assert not differences(out, undisturbed)
            return deaths
        left = sorted(contents(out))
        assert not died(forked(work))
        deaths.append({"left": left, "differs": differences(out, undisturbed)})


def main(folder: Path) -> dict[str, list[dict[str, object]]]:
    write_corpus(folder)
    left, right = TEACHERS
    texts = partial(corpus, folder, texts=TEXTS)
    made(folder / "a", texts(), [left])
    made(folder / "b", texts(), [right])
    fitted = lsa(name="left", width=4, path=str(folder / "a" / "teachers" / "left"), sample=12)
    made(folder / "c", corpus(folder, texts=TEXTS + 8, seed=1), [fitted])
    readers = {name: CacheReader(folder / name) for name in "abc"}
    trials: dict[str, Callable[[Path], object]] = {
        "join": lambda out: join([readers["a"], readers["b"]], out),
        "merge": lambda out: merge([readers["a"], readers["c"]], out, shard_format="parquet"),
        "export": lambda out: (out / "folder").exists() or export(readers["a"], out / "folder"),
    }
    return {name: every_call(folder, name, work) for name, work in trials.items()}


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1])), sys.stdout)
