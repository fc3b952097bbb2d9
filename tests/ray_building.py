"""Builds on a Ray cluster of this machine alone, whose actors are killed: a program of its own.

    python ray_building.py FOLDER

It prints, as JSON on its last line, how many actors were killed, which files differ from a build
without Ray, where the cluster listened, and how bad input was refused.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from jobs import ROWS_PER_SHARD, contents, corpus, lsa, write_corpus

from data.corpus import Corpus
from teacher_cache.build import Options, build, encode_here
from teacher_cache.format import CacheError
from teacher_cache.ray_engine import Cluster, connected

TEACHERS = [lsa(name="left", width=4, sample=12), lsa(name="right", width=3, sample=13)]
OPTIONS = Options(token_budget=128, rows_per_shard=ROWS_PER_SHARD)
LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""

TEXTS = 60 * ROWS_PER_SHARD + 5
KILL_AT = (1, 15, 30)
"""Kill an actor when so many shards are committed."""


def write_long_corpus(folder: Path) -> None:
    write_corpus(folder)
    path = folder / "web.jsonl"
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    longer = [f"{line} {number}" for number in range(40) for line in lines]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in longer))


def parents_of_all() -> dict[int, int]:
    """Every process of this machine, and its parent."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(after_name.split()[1])
    return parents


def actors() -> list[int]:
    """The actors of this process's own cluster."""
    parents, found = parents_of_all(), []
    for pid in parents:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::ShardActor"):
                found.append(pid)
    return [pid for pid in found if os.getpid() in ancestors(pid, parents)]


def ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    above = set()
    while pid in parents and pid not in above:
        above.add(pid)
        pid = parents[pid]
    return above


def kill_at_times(cache: Path, killed: list[int], places: list[str], done: threading.Event) -> None:
    for moment in KILL_AT:
        while len(list(cache.glob("shards/*.json"))) < moment and not done.is_set():
            time.sleep(0.002)
        living = [pid for pid in actors() if pid not in killed]
        if living and not done.is_set():
            os.kill(living[0], signal.SIGKILL)
            killed.append(living[0])
            places[:] = listening()


def listening() -> list[str]:
    """Where the processes of this cluster listen: `loopback`, `everywhere` or both."""
    parents = parents_of_all()
    own = {pid for pid in parents if os.getpid() in ancestors(pid, parents)}
    sockets = set()
    for pid in own:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(str(handle.readlink()).removeprefix("socket:[").rstrip("]"))
    places = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1].partition(":")[0], fields[3], fields[9]
            if state == LISTEN and inode in sockets:
                places.add("loopback" if address.endswith("0100007F") else "everywhere")
    return sorted(places)


def refusal(cache: Path, texts: Corpus, cluster: Cluster) -> str:
    try:
        build(cache, texts, [lsa(sample=16, width=3)], options=OPTIONS, engine=cluster)
    except CacheError as error:
        return str(error)
    return "nothing was refused"


def corpus_with_a_bad_text(folder: Path) -> Corpus:
    """No n-gram of the last text is known to a teacher that was fitted on the others."""
    (folder / "bad.txt").write_text("".join(f"{i} in a row\n" for i in range(20)) + "日本\n")
    return corpus(folder, sources=[{"name": "web", "path": "bad.txt"}], held_out=0)


def main(folder: Path) -> dict[str, object]:
    write_long_corpus(folder)
    texts = corpus(folder, texts=TEXTS)
    build(folder / "plain", texts, TEACHERS, options=OPTIONS, engine=encode_here)
    killed: list[int] = []
    places: list[str] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_at_times, args=(folder / "ray", killed, places, done))
    killer.start()
    manifest = build(folder / "ray", texts, TEACHERS, options=OPTIONS, engine=Cluster(workers=2))
    done.set()
    killer.join()
    plain, on_ray = contents(folder / "plain"), contents(folder / "ray")
    names = sorted({*plain, *on_ray})
    return {
        "shards": 0 if manifest is None else len(manifest.shards),
        "killed": len(killed),
        "listening": places,
        "no_gpu": refusal(folder / "no-gpu", texts, Cluster(device="cuda")),
        "bad_text": refusal(folder / "bad-text", corpus_with_a_bad_text(folder), Cluster()),
        "differs": [name for name in names if plain.get(name) != on_ray.get(name)],
    }


if __name__ == "__main__":
    with connected(None):
        results = main(Path(sys.argv[1]))
    json.dump(results, sys.stdout)
