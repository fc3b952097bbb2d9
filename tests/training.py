"""Training that dies: a program of its own, in which every training is a forked process.

    python training.py FOLDER

It runs the real command, `jasper-train`, on a small student, and prints for every trial, as JSON,
what was found. Nothing is imported twice: a fork trains in a fraction of a second.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

# Imported here, so that no fork pays for them again.
import transformers.models.bert.modeling_bert  # noqa: F401
from forks import Work, died, forked
from jobs import contents
from safetensors.torch import load_file, save_file
from small_caches import write_cache
from small_models import write_encoder
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

import cli.train
import student.train  # noqa: F401
from student import checkpoint

STAGES = (1, 2, 3)
STEPS = 14
FACTS = {"cache": "0123", "seed": 1}
RECIPE = """
[student]
init = "{init}"
max_tokens = 24
reduced_heads = {{ fc2 = 6, fc3 = 4, fc4 = 3 }}

[stages.1]
{common}
closed_form = ["fc1", "fc2"]

[stages.2]
{common}
trains = ["fc1", "layers[-1:]"]
keep = "best"

[stages.3]
{common}
order = "window"
window_shards = 2
"""
COMMON = f"steps = {STEPS}\nbatch_size = 16\nlearning_rate = 1e-2\nprobe_every = 3\nprobe_rows = 20"


def jasper_train(folder: Path, out: Path, stage: int, start: str = "fresh") -> None:
    options = {"stage": stage, "cache": folder / "cache", "out": out, "init-from": start,
               "recipe": folder / "recipe.toml", "save-every": 2}  # fmt: skip
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    sys.argv = ["jasper-train", *given, "--cpu"]
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        cli.train.main()
    except SystemExit as end:
        if end.code:
            raise


def outcome(out: Path, stage: int) -> dict[str, Any]:
    """What a stage ended with: its model, bit by bit, and what was logged of every step."""
    folder = out / f"stage-{stage}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for clock in ("samples_per_second", "data_wait", "peak_memory"):
            del line[clock]
    figures = json.loads((folder / "run.json").read_text())["figures"]
    kept = {name: figures[name] for name in ("best", "kept", "steps")}
    return {"model": contents(folder / "model"), "lines": lines, "kept": kept}


def killed_at_random(folder: Path) -> list[dict[str, Any]]:
    """Every stage, killed at random moments again and again until a training comes through."""
    found = []
    for stage in STAGES:
        began = time.monotonic()
        assert not died(forked(partial(jasper_train, folder, folder / "whole", stage)))
        longest = time.monotonic() - began
        whole = outcome(folder / "whole", stage)
        rng = random.Random(stage)
        deaths: list[int] = []
        while not deaths:  # a machine that has just become faster may be too fast for the first
            shutil.rmtree(folder / "broken", ignore_errors=True)
            deaths = train_and_die(folder, folder / "broken", stage, longest, rng)
            longest /= 2
        ended = outcome(folder / "broken", stage)
        found.append(
            {
                "stage": stage,
                "deaths": deaths,
                "differs": [part for part in whole if ended[part] != whole[part]],
                "files": sorted(p.name for p in (folder / "broken" / f"stage-{stage}").iterdir()),
                "kept": ended["kept"],
            }
        )
    return found


def train_and_die(
    folder: Path, out: Path, stage: int, longest: float, rng: random.Random
) -> list[int]:
    """Train until it comes through; give the step of the newest checkpoint at each death."""
    deaths: list[int] = []
    while True:
        process = forked(partial(jasper_train, folder, out, stage))
        # Each training gets longer on average than the one before, so that one comes through.
        time.sleep(longest * rng.random() * (0.8 + 0.3 * len(deaths)))
        os.kill(process, signal.SIGKILL)
        if not died(process):
            return deaths
        steps = sorted((out / f"stage-{stage}" / "checkpoints").glob("step-*"))
        deaths.append(int(steps[-1].name[5:]) if steps else 0)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {name: torch.full((3, 2), step + i / 10) for i, name in enumerate(("a", "b.c"))}


def save(folder: Path, step: int, best: int | None = None) -> None:
    state = {name: {"exp_avg": 2 * value} for name, value in tensors(step).items()}
    found = None if best is None else checkpoint.Best(best, 0.5)
    checkpoint.save(folder, step, tensors(step), state, FACTS, best=found)


def killed_at(moment: int, work: Work) -> Work:
    """The same work, ended by SIGKILL before it does its n-th thing to the disk."""

    def doomed() -> None:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                count()

        sync = os.fsync

        def fsync(handle: int) -> None:
            count()
            sync(handle)

        os.fsync = fsync
        sys.addaudithook(hook)
        work()

    return doomed


def killed_while_saving(folder: Path) -> list[dict[str, Any]]:
    """Die before the first thing that a save does to the disk, before the second, …"""
    found = []
    while True:
        place = folder / f"saves-{len(found)}"
        save(place, 1)
        save(place, 2, best=2)
        save(place, 3, best=2)
        save(place, 4, best=2)
        finished = not died(forked(killed_at(len(found) + 1, partial(save, place, 5, 5))))
        newest = checkpoint.newest(place, FACTS)
        assert newest is not None
        whole = load_file(newest.folder / checkpoint.WEIGHTS_FILE)
        good = all(torch.equal(whole[n], value) for n, value in tensors(newest.step).items())
        state = newest.optimizer()
        good &= all(torch.equal(state[n]["exp_avg"], 2 * value) for n, value in whole.items())
        best = checkpoint.best_of(newest)
        chosen = load_file(best.folder / checkpoint.WEIGHTS_FILE)
        good &= all(torch.equal(chosen[n], value) for n, value in tensors(best.step).items())
        good &= best.step == (2 if newest.step == 4 else 5)
        left = len(list(place.iterdir()))
        save(place, 6, best=5 if newest.step == 5 else 2)
        after = sorted(path.name for path in place.iterdir())
        found.append({"newest": newest.step, "good": good, "left": left, "after": after})
        shutil.rmtree(place)
        if finished:
            return found


def no_number_on_two(folder: Path) -> list[dict[str, Any]]:
    """Two processes of a launcher start from a head that holds no number."""
    start = folder / "no-number"
    shutil.copytree(folder / "whole" / "stage-2", start)
    heads = load_file(start / "model" / "heads.safetensors")
    heads["fc1.bias"][3] = math.nan
    save_file(heads, start / "model" / "heads.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def rank(number: str) -> None:
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2",
                       "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                       "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        out = folder / f"rank-{number}"  # its log; what both write goes to one folder
        out.symlink_to(folder / "two", target_is_directory=True)
        try:
            jasper_train(folder, out, 3, str(start))
        except SystemExit as end:
            os._exit(int(end.code or 0))

    (folder / "two").mkdir()
    processes = [forked(partial(rank, number)) for number in ("0", "1")]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    said = [(folder / f"rank-{number}.log").read_text() for number in ("0", "1")]
    left = [path.name for path in (folder / "two" / "stage-3").iterdir()]
    return [
        {"code": code, "said": text, "left": left} for code, text in zip(codes, said, strict=True)
    ]


TRIALS: Mapping[str, Any] = {
    trial.__name__: trial for trial in (killed_at_random, killed_while_saving, no_number_on_two)
}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_cache(place)
    init = write_encoder(place / "bert")
    (place / "recipe.toml").write_text(RECIPE.format(init=init, common=COMMON))
    json.dump({name: trial(place) for name, trial in TRIALS.items()}, sys.stdout)
