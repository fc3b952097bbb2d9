"""The same shards on a Ray cluster: an actor for each GPU (or CPU core), a shard for each task.

Nothing here is needed for correctness: a shard is committed by whoever encodes it, once, and what a
dead actor leaves undone is given to another. The cluster may grow and shrink while the build runs.
The cache, and teachers named by a local folder, must lie where every node sees them.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from teacher_cache.build import Task
from teacher_cache.files import remove_leftovers
from teacher_cache.finish import Build
from teacher_cache.format import Block, CacheError, Pooled
from teacher_cache.golden import Golden
from teacher_cache.located import Located, blocks_of, fingerprinted, load, locate
from teacher_cache.models import ModelError
from teacher_cache.plan import read_plan
from teacher_cache.shard_job import ShardJob
from teacher_cache.teachers import TeacherError
from teacher_cache.writer import committed

IN_FLIGHT = 3
"""Shards that an actor holds: one is tokenised, one encoded, one written."""

MAX_LOSSES = 5
"""How often a shard may be lost with its actor until it is to blame: those that were in the same
actor are lost too, and are innocent."""

_MAX_FAILED_STARTS = 3

_LOOK_AROUND_SECONDS = 5.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster a build runs on.

    `address` is that of a running one (`auto` finds it from a node of it); None starts one on this
    machine alone, which listens on loopback. `device` is cuda or cpu (None: cuda where a node has a
    GPU). `workers` is the most actors to have (None: one for each GPU, or each core).
    """

    address: str | None = None
    device: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise CacheError(
                f"on a Ray cluster --device is cpu or cuda, found {self.device!r}: which GPU a "
                "worker has is Ray's to say"
            )

    def __call__(self, task: Task) -> Build:
        """Encode a task's shards; an `Engine` for `teacher_cache.build.build`.

        Raises:
            CacheError: Ray is not installed, no cluster answers, it lacks the device, or a shard
                was lost too often.
            TeacherError: as a build's.
        """
        with connected(self.address) as ray:
            device = self.device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
            return _Driver(ray, task, device, self.workers).run()


class ShardActor:
    """A process of the cluster with the teachers in its memory."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.device = threading.Lock()

    def load(
        self,
        located: Sequence[Located],
        goldens: Sequence[Golden],
        device: str,
        token_budget: int | None,
    ) -> tuple[list[Block], Pooled | None]:
        """Load and check the teachers, and say what they are."""
        plan = read_plan(self.cache)
        if plan is None:
            raise CacheError(
                f"{self.cache} holds no plan where the node {platform.node()} looks: the cache "
                "must lie on a file system that every node of the cluster sees"
            )
        self.plan = plan
        remove_leftovers(self.cache)
        self.located = [_here(one) for one in located]
        self.encoders = load(self.located, goldens, device=device, token_budget=token_budget)
        return blocks_of(self.located, self.encoders)

    def encode(self, index: int, begun: Build) -> None:
        """Encode and commit one shard. Calls overlap: only one at a time has the device."""
        teachers = [one.teacher for one in self.located]
        job = ShardJob(
            self.cache, self.plan, begun.identity, teachers, self.encoders, begun.shard_format
        )
        shard = job.prepare(index)
        if shard is None:
            return
        with self.device:
            vectors = job.encode(shard, lambda _texts: None)
        job.commit(shard, vectors)


def _here(one: Located) -> Located:
    """The same teacher as this node finds it: in the same folder, or by its name."""
    if one.folder is not None and one.folder.is_dir():
        found = fingerprinted(one.teacher, one.folder, one.revision)
    else:
        # What a hub has as its newest may have changed since the build began.
        pinned = locate(replace(one.teacher, revision=one.revision), Path())
        found = replace(pinned, teacher=one.teacher)
    if found.fingerprint != one.fingerprint:
        raise TeacherError(
            f"teacher {one.teacher.name!r}: the files in {found.folder} of node {platform.node()} "
            "are not those of the node that started the build"
        )
    return found


@dataclass
class _Driver:
    """Hands out shards until all are committed."""

    ray: Any
    task: Task
    device: str
    workers: int | None
    begun: Build | None = None
    waiting: deque[int] = field(default_factory=deque)
    losses: Counter[int] = field(default_factory=Counter)
    starting: dict[Any, Any] = field(default_factory=dict)
    """The answer of an actor's `load` that is awaited → the actor."""
    running: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    """The answer of a task that is awaited → its actor and shard."""
    ready: set[Any] = field(default_factory=set)
    unfit: set[Any] = field(default_factory=set)
    """Actors whose node lacks the cache or a teacher, or reads one otherwise. They live on and do
    nothing: so Ray does not put another one in their place."""
    refusal: Exception | None = None
    failed_starts: int = 0
    """Actors that died while they loaded, since one was ready last."""
    looked_around: float = -_LOOK_AROUND_SECONDS

    def run(self) -> Build:
        task = self.task
        self.waiting.extend(task.shards)
        with task.phase("loading teachers", 1) as advance:
            while not self.ready:
                self._staff()
                list(self._collect())
            advance(1)
        with task.phase("encoding", task.work) as advance:
            while self.waiting or self.running:
                self._staff()
                self._hand_out()
                for index in self._collect():
                    advance(task.plan.shards[index].rows * len(task.found))
        for actor in [*self.ready, *self.unfit, *self.starting.values()]:
            self.ray.kill(actor)
        remove_leftovers(task.cache)  # of actors that died
        if self.begun is None:
            raise CacheError("no worker was ever ready")
        return self.begun

    def _staff(self) -> None:
        """As many actors as the cluster has room for, and as there is work for."""
        now = time.monotonic()
        if now - self.looked_around < _LOOK_AROUND_SECONDS:
            return
        self.looked_around = now
        kind = "CPU" if self.device == "cpu" else "GPU"
        room = int(self.ray.cluster_resources().get(kind, 0))
        if room == 0 and not self.ready:
            raise CacheError(
                f"the cluster has no {kind}: start a node that has one, or give another --device"
            )
        if self.unfit and self.starting and not self.ready:
            return  # What ails one may ail all: those that were started will tell.
        useful = max(1, len(self.waiting) + len(self.running))
        wanted = min(room - len(self.unfit), useful, self.workers or room)
        for _ in range(wanted - len(self.ready) - len(self.starting)):
            self._start(kind)
        if self.refusal is not None and not (self.ready or self.starting):
            raise self.refusal

    def _start(self, kind: str) -> None:
        task = self.task
        found = [replace(one, folder=one.folder and one.folder.resolve()) for one in task.found]
        remote = self.ray.remote(ShardActor).options(
            num_cpus=1, num_gpus=1 if kind == "GPU" else 0, max_concurrency=IN_FLIGHT
        )
        actor = remote.remote(task.cache.resolve())
        answer = actor.load.remote(found, task.goldens, self.device, task.options.token_budget)
        self.starting[answer] = actor

    def _hand_out(self) -> None:
        if self.begun is None:
            return
        load = Counter(actor for actor, _ in self.running.values())
        # One each before a second for any: near the end nobody sits idle beside a queue.
        for depth in range(IN_FLIGHT):
            for actor in self.ready:
                if self.waiting and load[actor] == depth:
                    index = self.waiting.popleft()
                    answer = actor.encode.remote(index, self.begun)
                    self.running[answer] = (actor, index)
                    load[actor] += 1

    def _collect(self) -> Iterator[int]:
        """Wait a little; the shards that were committed meanwhile."""
        awaited = [*self.starting, *self.running]
        answers, _ = self.ray.wait(awaited, num_returns=1, timeout=_LOOK_AROUND_SECONDS)
        for answer in answers:
            if answer in self.starting:
                self._started(answer, self.starting.pop(answer))
            elif answer in self.running:
                yield from self._ended(answer, *self.running.pop(answer))

    def _started(self, answer: Any, actor: Any) -> None:
        try:
            blocks, pooled = self._value(answer)
            # Each one is held to the identity that the first one settled.
            self.begun = self.task.begin(blocks, pooled)
        except self.ray.exceptions.RayActorError as error:
            self.failed_starts += 1
            self.looked_around = -_LOOK_AROUND_SECONDS
            if self.failed_starts >= _MAX_FAILED_STARTS and not self.ready:
                raise CacheError(
                    f"{self.failed_starts} workers died while they loaded the teachers; the last: "
                    f"{error}"
                ) from None
            return
        except (CacheError, ModelError) as error:
            self._left_out(actor, error)
            return
        self.failed_starts = 0
        self.ready.add(actor)

    def _left_out(self, actor: Any, error: Exception) -> None:
        """One node that is not as the others must not end what they do."""
        if not (self.ready or self.starting):
            raise error
        _LOG.warning("a worker is left out: %s", error)
        self.unfit.add(actor)
        self.refusal = error
        self.looked_around = -_LOOK_AROUND_SECONDS

    def _ended(self, answer: Any, actor: Any, index: int) -> Iterator[int]:
        try:
            self._value(answer)
        except self.ray.exceptions.RayActorError as error:
            # The actor or its node is gone; another is started where there is room.
            self.ready.discard(actor)
            self.looked_around = -_LOOK_AROUND_SECONDS
            if committed(self.task.cache, index) is None:
                self._again(index, error)
                return
        yield index

    def _again(self, index: int, error: Exception) -> None:
        self.losses[index] += 1
        if self.losses[index] >= MAX_LOSSES:
            raise CacheError(
                f"shard {index} was lost with its worker {self.losses[index]} times; the last: "
                f"{error}"
            )
        self.waiting.appendleft(index)

    def _value(self, answer: Any) -> Any:
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            # The error as it was raised over there; a bug keeps its remote traceback.
            if isinstance(error.cause, CacheError | ModelError):
                raise error.cause from None
            raise


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected as `Cluster` says; a session that this process has is used.

    Raises:
        CacheError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # What keeps Ray off the network on two other systems does so on Linux too; its parameter
        # for a node's address does not.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise CacheError(
            "the engine ray needs the package ray: pip install 'jasper-distill[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    if address is not None and ":" in address:
        _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options |= {"include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for six minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str | None, error: Exception) -> CacheError:
    return CacheError(
        f"no Ray cluster answers at {address!r}: {error}; start one with `ray start --head`, "
        "or leave --ray-address out to use this machine alone"
    )
