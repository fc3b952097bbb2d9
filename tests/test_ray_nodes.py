"""Nodes that are not as the others: they are left out, and a build ends only where none is fit.

Ray is stood in for: actors live in this process, some of them on a node without the cache or with
other libraries, and some die.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import ROWS_PER_SHARD, contents, corpus, lsa, write_corpus

from teacher_cache import models
from teacher_cache.build import Options, build
from teacher_cache.format import Block, CacheError, Manifest, Pooled
from teacher_cache.located import Located
from teacher_cache.ray_engine import Cluster, ShardActor, _here
from teacher_cache.teachers import TeacherSpec, resolve

OPTIONS = Options(token_budget=128, rows_per_shard=ROWS_PER_SHARD)
TEACHERS = [lsa(width=4, sample=12)]


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorError(Exception):
    pass


class Actor:
    """`actor.method.remote(…)` is answered when it is waited for; after `last` answers it dies."""

    def __init__(self, made: Any, last: int | None) -> None:
        self.made, self.last = made, last
        self.answered = 0

    def __getattr__(self, name: str) -> Any:
        def work(given: Any) -> Any:
            if self.answered == self.last:
                raise ActorError(f"killed after {self.last}")
            self.answered += 1
            return getattr(self.made, name)(*given)

        return SimpleNamespace(remote=lambda *given: Answer(self, lambda: work(given)))


class Answer:
    def __init__(self, actor: Actor, work: Callable[[], Any]) -> None:
        self.actor, self.work = actor, work


class Otherwise(ShardActor):
    """On a node whose libraries read another place of the text than the others' do."""

    def load(self, *given: Any) -> tuple[list[Block], Pooled | None]:
        blocks, pooled = super().load(*given)
        return [replace(block, pooling="last") for block in blocks], pooled


class Ray:
    """A cluster of `room` CPUs; actors of the numbers in `blind` do not see the cache, those in
    `other` are `Otherwise`, and those in `deaths` die after so many answers."""

    exceptions = SimpleNamespace(RayActorError=ActorError, RayTaskError=TaskError)

    def __init__(
        self,
        room: int,
        blind: Collection[int] = (),
        *,
        last_first: bool = False,
        other: Collection[int] = (),
        deaths: Mapping[int, int] = {},
    ) -> None:
        self.room, self.blind, self.last_first = room, blind, last_first
        self.other, self.deaths = other, deaths
        self.actors: list[Actor] = []
        self.living: set[Actor] = set()

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.room}

    def remote(self, kind: type) -> Any:
        def make(cache: Path) -> Actor:
            number = len(self.actors)
            made = Otherwise if number in self.other else kind
            place = cache / "not-mounted" if number in self.blind else cache
            actor = Actor(made(place), self.deaths.get(number))
            self.actors.append(actor)
            self.living.add(actor)
            assert len(self.living) <= self.room
            return actor

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, awaited: list[Answer], *, num_returns: int, timeout: float) -> Any:
        assert awaited, "Ray refuses to wait for nothing"
        first = -1 if self.last_first else 0
        return [awaited[first]], []

    def get(self, answer: Answer) -> Any:
        try:
            return answer.work()
        except ActorError:
            self.living.discard(answer.actor)
            raise
        except Exception as error:
            raise TaskError(error) from error

    def kill(self, actor: Actor) -> None:
        self.living.discard(actor)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_corpus(tmp_path)
    return tmp_path


def built(place: Path, ray: Ray, patch: pytest.MonkeyPatch, workers: int | None) -> Manifest | None:
    patch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    patch.setitem(sys.modules, "ray.exceptions", ray.exceptions)  # type: ignore[arg-type]
    cluster = Cluster(device="cpu", workers=workers)
    return build(place / "ray", corpus(place), TEACHERS, options=OPTIONS, engine=cluster)


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize(
    ("room", "workers", "blind"), [(3, None, {0}), (3, None, {2}), (4, 2, {1}), (4, 2, {0, 2})]
)
def test_node_without_the_cache_is_left_out_and_the_others_go_on(
    room: int, workers: int | None, blind: set[int], last_first: bool, place: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    build(place / "here", corpus(place), TEACHERS, options=OPTIONS)
    ray = Ray(room, blind, last_first=last_first)
    assert built(place, ray, monkeypatch, workers) is not None
    assert contents(place / "ray") == contents(place / "here")
    assert ray.living == set()
    assert len(ray.actors) <= room, "none is started again in the place of one that was left out"
    lines = [record.getMessage() for record in caplog.records]
    assert all("a worker is left out: " in line and "not-mounted" in line for line in lines)
    assert len(lines) <= len(blind)
    assert lines or last_first, "the first one had no time to answer"


def test_build_ends_where_no_node_is_fit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(8, set(range(8)), last_first=False)
    with pytest.raises(CacheError, match=r"not-mounted holds no plan where the node .* looks"):
        built(place, ray, monkeypatch, 2)
    assert len(ray.actors) == 2, "what ails the first ones is not tried on all of the cluster"


def test_node_that_reads_a_teacher_otherwise_encodes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(place / "here", corpus(place), TEACHERS, options=OPTIONS)
    ray = Ray(3, other={1, 2})
    assert built(place, ray, monkeypatch, None) is not None
    assert contents(place / "ray") == contents(place / "here")
    assert [actor.answered for actor in ray.actors[1:]] == [1, 1], "to load, and no shard"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("left out: " in line and "under the identity" in line for line in lines)


def test_only_failed_starts_one_after_the_other_end_a_build(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CacheError, match="3 workers died while they loaded the teachers; the last"):
        built(place, Ray(1, deaths=dict.fromkeys(range(9), 0)), monkeypatch, None)
    # Of each three, two die while they load, and one when it has encoded a shard.
    ray = Ray(1, deaths={number: 2 if number % 3 == 2 else 0 for number in range(9)})
    manifest = built(place, ray, monkeypatch, None)
    assert manifest is not None
    assert (len(manifest.shards), len(ray.actors)) == (4, 10)


def test_model_of_a_hub_is_fetched_at_the_commit_the_build_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str | None] = []

    def snapshot_download(_repository: str, *, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    spec = {"name": "mine", "encoder": "sentence-transformers", "path": "org/model"}
    one = Located(resolve(TeacherSpec.model_validate(spec)), tmp_path / "gone", "c0ffee")
    with pytest.raises(models.ModelError):
        _here(one)
    assert asked == ["c0ffee"]
