"""Whatever fails at whichever step of a build, the next one ends as if nothing had happened."""

import errno
import gzip
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from faults import (
    CHANGES,
    NEEDS_ROOM,
    Disk,
    Fault,
    Step,
    failing_once,
    full_from,
    meanwhile,
    read_only_from,
    without_links,
)
from jobs import ROWS_PER_SHARD, contents, copy, corpus, lsa, make, write_corpus
from machines import another_machine
from planning import mixed_corpus, write_sources
from power import EVERYTHING, Contents, Model, choices, halved
from shard_files import shard_file

from data.corpus import CorpusError
from teacher_cache.files import remove_leftovers
from teacher_cache.format import CacheError, plan_path, read_json, record_path
from teacher_cache.plan import make_plan
from teacher_cache.repair import repair

Files = dict[str, bytes]
Run = Callable[[Path], object]

TEACHERS = [lsa(width=4, sample=12)]
TEXTS = ROWS_PER_SHARD + 5

# Kinds of failure at the n-th step: what fails from there on, and the steps that it can begin with.
FAULTS: dict[str, tuple[Callable[[int], Fault], set[str]]] = {
    os.strerror(errno.EIO): (
        lambda moment: failing_once(moment, errno.EIO),
        {*CHANGES, "open", "fsync"},
    ),
    os.strerror(errno.ENOSPC): (full_from, NEEDS_ROOM),
    os.strerror(errno.EROFS): (read_only_from, CHANGES),
}


def build_into(cache: Path) -> None:
    make(cache, corpus(cache.parent, texts=TEXTS), TEACHERS)


def plan_into(cache: Path) -> None:
    texts = mixed_corpus(cache.parent, hub=False, texts=40)
    make_plan(cache, texts, rows_per_shard=ROWS_PER_SHARD, on_text=lambda _: None, save_every=1)
    remove_leftovers(cache)


@pytest.fixture(scope="module")
def place(memory_folder: Path) -> Path:
    """The corpora of both kinds of run."""
    write_corpus(memory_folder)
    write_sources(memory_folder)
    return memory_folder


def repair_in(cache: Path) -> None:
    repair(cache, TEACHERS)


@pytest.fixture(
    params=[build_into, plan_into, "lost", repair_in], ids=["build", "plan", "lost shard", "repair"]
)
def job(request: pytest.FixtureRequest, place: Path) -> tuple[Run, Callable[[Path], object]]:
    """What is run, and what there is before it: nothing, or a cache that has lost a shard."""
    if request.param in (build_into, plan_into):
        return request.param, lambda _: None
    if not (place / "finished").exists():
        build_into(place / "finished")

    def lose(cache: Path) -> None:
        """Records tell of a shard with other last bits, which is gone."""
        copy(place / "finished", cache)
        shard_file(cache, 1).unlink()
        checksum = read_json(record_path(cache, 1))["checksum"]
        for path in (record_path(cache, 1), cache / "manifest.json"):
            path.write_text(path.read_text().replace(checksum, checksum[::-1]))

    def damage(cache: Path) -> None:
        copy(place / "finished", cache)
        record_path(cache, 0).unlink()
        for path in (shard_file(cache, 1), plan_path(cache, 0), cache / "build.json"):
            data = path.read_bytes()
            path.write_bytes(data[:-20] + bytes([data[-20] ^ 0xFF]) + data[-19:])

    return (build_into, lose) if request.param == "lost" else (repair_in, damage)


@pytest.fixture
def folders(place: Path) -> Iterator[Callable[[], Path]]:
    """New folders for caches, beside the corpora."""
    made: list[Path] = []

    def new() -> Path:
        made.append(place / f"cache-{len(made)}")
        return made[-1]

    yield new
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def state(files: Contents | Files) -> tuple[tuple[str, bytes | None], ...]:
    """What a next run sees. Temporary files are removed by their names alone."""
    key = [
        (re.sub(r"\.\w+-\d+-\d+\.tmp", ".tmp", name), None if ".tmp" in name else data)
        for name, data in files.items()
    ]
    return tuple(sorted(key, key=lambda item: item[0]))


def names_given(steps: list[Step]) -> int:
    """How many states of the folder there are at least, each with one more file."""
    return sum(step.name in ("rename", "link") for step in steps)


def test_every_step_may_fail(
    job: tuple[Run, Callable[[Path], object]], folders: Callable[[], Path]
) -> None:
    """It is told in one line, and the next run ends as if nothing had happened."""
    run, prepare = job
    whole = folders()
    prepare(whole)
    with Disk(whole).watched() as recorded:
        run(whole)
    assert recorded.escaped == []
    undisturbed = contents(whole)
    seen: set[Any] = set()
    for reason, (fault, kinds) in FAULTS.items():
        for moment, step in enumerate(recorded.steps):
            if step.name not in kinds:
                continue
            cache = folders()
            prepare(cache)
            with Disk(cache, fault(moment)).watched() as disk:
                try:
                    run(cache)
                except CacheError as error:
                    line = str(error)
                    assert line.startswith(str(cache)), line
                    assert reason in line, line
            assert disk.escaped == []
            left = state(contents(cache))
            if left not in seen:
                seen.add(left)
                run(cache)
                assert contents(cache) == undisturbed, f"{reason} at {step.name} {step.path}"
    assert len(seen) > names_given(recorded.steps)


def committed_by(steps: list[Step]) -> set[str]:
    """Files and folders that were given their name, whose folder was synced since: they stay."""
    named: dict[str, str] = {}
    safe: set[str] = set()
    for step in steps:
        if step.name in ("rename", "link"):
            named[step.other] = step.other.rpartition("/")[0]
        if step.name in ("rename", "unlink", "rmdir"):
            named.pop(step.path, None)
            safe.discard(step.path)
        if step.name == "fsync":
            safe |= {path for path, folder in named.items() if folder == step.path}
    return {path for path in safe if ".tmp" not in path}


def inside(root: Path, path: str) -> str:
    return os.path.relpath(path, root.parent)


def restore(cache: Path, left: Contents) -> None:
    """Make the folder what the power cut left of it, under another name."""
    for name, data in left.items():
        path = cache.joinpath(*Path(name).parts[1:])
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def test_process_may_die_and_power_be_cut_behind_every_step(
    job: tuple[Run, Callable[[Path], object]], folders: Callable[[], Path]
) -> None:
    """Nothing that was committed is lost, and the next run ends as if nothing had happened."""
    run, prepare = job
    whole = folders()
    prepare(whole)
    before = contents(whole)
    with Disk(whole).watched() as recorded:
        run(whole)
    undisturbed = contents(whole)
    seen: set[Any] = set()
    model = Model.of(whole, before)
    steps = list(halved(recorded.steps))
    for moment, step in enumerate(steps):
        model.do(step)
        safe = {inside(whole, path) for path in committed_by(steps[: moment + 1])}
        now = model.cut(EVERYTHING)
        for name, choice in choices(moment).items():
            left = model.cut(choice)
            lost = [path for path in safe if path not in left or left[path] != now[path]]
            assert not lost, f"{name}, behind {step.name} {step.path}"
            key = state(left)
            if key in seen:
                continue
            seen.add(key)
            cache = folders()
            restore(cache, left)
            run(cache)
            assert contents(cache) == undisturbed, f"{name}, behind {step.name} {step.path}"
    assert {inside(whole, whole / name) for name in undisturbed} <= set(model.cut(EVERYTHING))
    assert len(seen) > names_given(recorded.steps)


def test_builder_woken_after_another_finished_changes_nothing(
    job: tuple[Run, Callable[[Path], object]], folders: Callable[[], Path]
) -> None:
    """It is stopped before every step in turn, but within a file once: that is still nameless."""
    run, prepare = job
    recorded = folders()
    prepare(recorded)
    with Disk(recorded).watched() as disk:
        run(recorded)
    for moment, step in enumerate(disk.steps):
        if step.name == "write" and disk.steps[moment - 1].name == "write":
            continue
        cache = folders()
        prepare(cache)
        finished: Files = {}

        def finish(cache: Path = cache, finished: Files = finished) -> None:
            own = os.getpid
            os.getpid = os.getppid  # of a process that lives, as the stopped one does
            try:
                with another_machine(1):
                    run(cache)
            finally:
                os.getpid = own
            finished.update(contents(cache))

        with Disk(cache, meanwhile(moment, finish)).watched():
            run(cache)
        kept = {name: data for name, data in finished.items() if ".tmp" not in name}
        assert contents(cache) == kept, f"woken at {step.name} {step.path}"
        assert run is plan_into or "manifest.json" in kept


def test_planner_woken_after_the_corpus_has_changed_changes_nothing(
    place: Path, folders: Callable[[], Path]
) -> None:
    """Another planned it meanwhile, from files of the same names that held something else.

    Where the first one has saved its state by then, the other is refused.
    """
    before = place / "before"
    write_sources(before)
    lines = gzip.decompress((before / "pairs.jsonl.gz").read_bytes()).splitlines()
    (before / "pairs.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[::-1])))

    def plan(cache: Path, texts: Path) -> None:
        corpus = mixed_corpus(texts, hub=False, texts=40)
        make_plan(cache, corpus, rows_per_shard=16, on_text=lambda _: None, save_every=1)

    with Disk(recorded := folders()).watched() as disk:
        plan(recorded, before)
    undisturbed, overtaken = contents(recorded), 0
    for moment, step in enumerate(disk.steps):
        finished: Files = {}

        def finish(finished: Files = finished) -> None:
            with suppress(CorpusError):
                plan(cache, place)
                finished.update(contents(cache))

        with Disk(cache := folders(), meanwhile(moment, finish)).watched():
            plan(cache, before)
        kept = {name: data for name, data in finished.items() if ".tmp" not in name}
        overtaken += bool(kept)
        assert contents(cache) == (kept or undisturbed), f"woken at {step.name} {step.path}"
    assert overtaken > 30


def test_file_system_without_hard_links_will_do(place: Path, folders: Callable[[], Path]) -> None:
    build_into(whole := folders())
    with Disk(cache := folders(), without_links).watched():
        build_into(cache)
    assert contents(cache) == contents(whole)
