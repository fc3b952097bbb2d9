"""Ranks wait for what rank 0 does as long as it lives, and no longer."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import ROWS_PER_SHARD, corpus, lsa, make, write_corpus

from teacher_cache import ranks
from teacher_cache.format import CacheError
from teacher_cache.plan import make_plan
from teacher_cache.ranks import Rank, awaited, wait_for


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ranks, "SIGN_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "PATIENCE_SECONDS", 1.0)


def test_rank_gives_up_when_nobody_plans_or_fits(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    cache, teachers = tmp_path / "cache", [lsa()]
    message = f"waited for rank 0 to plan {cache}, which has shown no sign of life for 1 s"
    with pytest.raises(CacheError, match=message):
        make(cache, corpus(tmp_path), teachers, rank=Rank(1, 2))
    make_plan(cache, corpus(tmp_path), rows_per_shard=ROWS_PER_SHARD, on_text=lambda _: None)
    with pytest.raises(CacheError, match="waited for rank 0 to fit the teacher 'lsa' of"):
        make(cache, corpus(tmp_path), teachers, rank=Rank(1, 2))


def test_rank_waits_while_rank_0_lives_and_leaves_when_it_has_failed(tmp_path: Path) -> None:
    looks: list[int] = []
    began, fail = threading.Event(), threading.Event()

    def plan() -> None:
        with suppress(OSError), awaited(Rank(0, 2), tmp_path):
            began.set()
            fail.wait()
            raise OSError

    def look() -> None:
        looks.append(len(list(tmp_path.glob(".rank-0.*.tmp"))))
        if len(looks) == 400:  # four times its patience, at least
            fail.set()

    planner = threading.Thread(target=plan)
    planner.start()
    began.wait()
    with pytest.raises(CacheError, match="waited for rank 0 to plan"):
        wait_for("plan", tmp_path, look)
    planner.join()
    assert looks[:400] == [1] * 400
    assert looks[-1] == 0
    assert not list(tmp_path.iterdir())


def test_builder_that_is_alone_shows_nobody_that_it_lives(tmp_path: Path) -> None:
    with awaited(Rank(), tmp_path):
        assert not list(tmp_path.iterdir())
