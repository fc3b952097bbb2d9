"""Plans that die: a program of its own, in which every planner is a forked process.

    python planning.py FOLDER

It prints, as JSON, for every trial one entry per death: how many texts the next planner found done,
and which files differ in the end from an undisturbed plan's. An audit hook kills the process by
SIGKILL when a file has been written but has not got its name yet, or when one is about to go.
"""

import gzip
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from forks import died, forked

from data.corpus import Corpus, CorpusSpec
from teacher_cache.plan import make_plan, read_plan
from teacher_cache.plan_progress import clear_progress

ROWS_PER_SHARD = 16
TEXTS = 150
TEXTS_OF_TRIALS = 90
_WORDS = ["River", "house", "letter,", "winter", "engine", "table", "Window", "captain", "garden"]


def write_sources(folder: Path) -> None:
    """Documents in Parquet, pairs and triples in packed JSON lines, some twice, some bad."""
    rng = random.Random(3)

    def text(sentences: int) -> str:
        return " ".join(
            " ".join(["The", *rng.choices(_WORDS, k=rng.randint(2, 9))]) + "."
            for _ in range(sentences)
        )

    for name in ("local", "hub"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            texts = [text(rng.randint(1, 12)) for _ in range(25)]
            texts[7] = texts[3].upper()
            if name == "local":
                texts[11] = " "
            table = pa.table(
                {"text": texts, "id": [str(i) for i in range(25)], "score": [3.1] * 25}
            )
            pq.write_table(table, folder / name / f"train-{number:05d}.parquet", row_group_size=10)
    for name in ("pairs", "triples"):
        lines = []
        for i in range(60):
            question, answer = text(1).replace(".", "?"), text(2)
            row: Any = (
                [question, answer] if name == "pairs" else {"query": question, "pos": [answer]}
            )
            lines.append("not json" if i == 20 else json.dumps(row))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def mixed_corpus(folder: Path, *, hub: bool = True, **changes: Any) -> Corpus:
    """The corpus over `write_sources`' files; `changes` are fields of its specification.

    Without `hub` nothing is read through `datasets`, which takes most of the time.
    """
    sources = [
        {"name": "local", "path": "local", "weight": 3, "cut": 0.3, "sentences": [1, 3]},
        {"name": "hub", "dataset": "./hub", "weight": 2, "cut": 0.5},
        {"name": "pairs", "path": "pairs.jsonl.gz"},
        {"name": "triples", "path": "triples.jsonl.gz", "fields": ["query", "pos"], "weight": 0.5},
    ]
    spec = {
        "sources": [source for source in sources if hub or source["name"] != "hub"],
        "texts": TEXTS,
        "held_out": 0.2,
        "bad_rows": "skip",
        "near_duplicates": "drop",
        "shuffle_words": 0.1,
        **changes,
    }
    return Corpus(CorpusSpec.model_validate(spec), folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def plan_into(cache: Path, hub: bool = True) -> None:
    """What a build does: plan, or clear away what a planner left that died after planning."""
    told: list[int] = []
    if read_plan(cache) is not None:
        clear_progress(cache)
    else:
        corpus = mixed_corpus(cache.parent, hub=hub, texts=TEXTS_OF_TRIALS)
        make_plan(cache, corpus, rows_per_shard=ROWS_PER_SHARD, on_text=told.append, save_every=1)
    done = told[0] if told and told[0] > 1 else 0
    (cache.parent / f"{cache.name}.done").write_text(str(done))


def killed_at(moment: int, cache: Path) -> None:
    """Plan until the given call, counted from 1."""
    seen = 0

    def die(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir"):
            # A tree is removed by names within an open folder.
            seen += event != "os.rename" or str(arguments[0]).startswith(str(cache))
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    plan_into(cache, hub=False)


def outcome(cache: Path, undisturbed: dict[str, bytes]) -> dict[str, Any]:
    found = contents(cache)
    differs = [name for name in {*found, *undisturbed} if found.get(name) != undisturbed.get(name)]
    return {"done": int(Path(f"{cache}.done").read_text()), "differs": sorted(differs)}


def every_call(folder: Path) -> list[dict[str, Any]]:
    """Die at the first call, at the second, …; go on once each time."""
    assert not died(forked(partial(plan_into, folder / "local-only", hub=False)))
    undisturbed = contents(folder / "local-only")
    deaths: list[dict[str, Any]] = []
    while True:
        cache = folder / f"at-{len(deaths) + 1}"
        if not died(forked(partial(killed_at, len(deaths) + 1, cache))):
            return deaths
        assert not died(forked(partial(plan_into, cache, hub=False)))
        deaths.append(outcome(cache, undisturbed))


def again_and_again(folder: Path) -> list[dict[str, Any]]:
    """Die after a random time, again and again, until a planner comes through."""
    undisturbed = contents(folder / "whole")
    began = time.monotonic()
    assert not died(forked(partial(plan_into, folder / "timed")))
    longest = time.monotonic() - began
    trials: list[dict[str, Any]] = []
    for seed in range(2):
        rng = random.Random(seed)
        cache = folder / f"seed-{seed}"
        deaths = 0
        while True:
            process = forked(partial(plan_into, cache))
            # Each one has longer on average than the one before, so that one comes through.
            time.sleep(longest * rng.random() * (0.6 + 0.3 * deaths))
            os.kill(process, signal.SIGKILL)
            if not died(process):
                break
            deaths += 1
        trials.append({**outcome(cache, undisturbed), "deaths": deaths})
    return trials


def two_at_once(folder: Path) -> list[dict[str, Any]]:
    """Two planners that do not know of each other share one folder."""
    undisturbed = contents(folder / "whole")
    cache = folder / "shared"
    processes = [forked(partial(plan_into, cache)) for _ in range(2)]
    ends = [died(process) for process in processes]
    assert not any(ends)
    assert not died(forked(partial(plan_into, cache)))
    return [outcome(cache, undisturbed)]


TRIALS = (every_call, again_and_again, two_at_once)

if __name__ == "__main__":
    # `datasets` imports it where it opens a stream: here, so that no fork pays for it again.
    import datasets
    import torch  # noqa: F401

    datasets.disable_progress_bars()
    place = Path(sys.argv[1])
    write_sources(place)
    assert not died(forked(lambda: plan_into(place / "whole")))
    json.dump({trial.__name__: trial(place) for trial in TRIALS}, sys.stdout)
