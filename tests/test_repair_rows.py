"""Files that are what their records say, and rows that are not the cache's: mended, or refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forging import Change, forge, retold, scaled, swapped
from jobs import TWO, contents, copy, made_of_two
from shard_files import shard_file

from teacher_cache.build import Options
from teacher_cache.format import CacheError, plan_path, record_path
from teacher_cache.reader import CacheReader
from teacher_cache.repair import repair
from teacher_cache.verify import verify


@pytest.fixture(scope="module")
def whole(memory_folder: Path) -> Path:
    return made_of_two(memory_folder)


@pytest.fixture
def own(whole: Path) -> Iterator[Path]:
    """A whole cache, to damage."""
    place = copy(whole, whole.parent / "own")
    yield place
    shutil.rmtree(place)


def repaired(cache: Path) -> list[str]:
    told: list[str] = []
    repair(cache, TWO, options=Options(token_budget=128), tell=told.append)
    return told


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("change", [scaled(5, 1.01), scaled(5, 0.0), retold])
def test_shard_of_bad_rows_that_its_record_vouches_for_is_encoded_again(
    change: Change, own: Path, whole: Path
) -> None:
    forge(own, 1, change)
    assert repaired(own) == ["shard 1 was encoded again"]
    assert contents(own) == contents(whole)


def test_shard_that_another_mended_meanwhile_is_not_said_to_be_encoded(
    own: Path, whole: Path
) -> None:
    forge(own, 1, scaled(5, 1.01))
    told: list[str] = []

    @contextmanager
    def phase(what: str, _: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None
        assert what == "verifying"
        shutil.copytree(whole / "shards", own / "shards", dirs_exist_ok=True)

    repair(own, TWO, phase=phase, tell=told.append)
    assert told == []
    assert contents(own) == contents(whole)


def test_good_plan_is_not_written_over_with_rows_that_were_moved(own: Path, whole: Path) -> None:
    forge(own, 1, swapped, ids=True)
    before = contents(own)
    removable = f"{own / 'manifest.json'} and {record_path(own, 1)}"
    for _ in range(2):
        with pytest.raises(CacheError, match=f"where the plan is right, remove {removable}"):
            repaired(own)
        assert contents(own) == before
        # Where another shard cannot be read, no digest of all ids tells: the plan's must.
        garble(shard_file(own, 3))
        before = contents(own)
    (own / "manifest.json").unlink()
    record_path(own, 1).unlink()
    repaired(own)
    assert contents(own) == contents(whole)


def test_moved_rows_are_refused_where_there_is_no_plan(own: Path) -> None:
    forge(own, 1, swapped, ids=True)
    shutil.rmtree(own / "plan")
    (own / "plan.json").unlink()
    with pytest.raises(CacheError, match="nothing here tells which they were: build the cache"):
        repaired(own)


@pytest.mark.parametrize("lost", ["cut", "gone", "another's"])
def test_lost_shard_is_encoded_from_its_plans_file_though_the_list_of_these_is_damaged(
    lost: str, own: Path, whole: Path
) -> None:
    shard, plan = shard_file(own, 1), own / "plan.json"
    if lost == "gone":
        shard.unlink()
        plan.unlink()
    else:
        garble(shard)
        plan.write_text(
            "{" if lost == "cut" else json.dumps({**json.loads(plan.read_text()), "rows": 57})
        )
    repaired(own)
    assert contents(own) == contents(whole)
    assert verify(CacheReader(own)) == []


def test_plans_file_of_other_texts_is_not_taken_for_a_lost_shard(own: Path) -> None:
    garble(shard_file(own, 1))
    (own / "plan.json").unlink()
    shutil.copy(plan_path(own, 2), plan_path(own, 1))
    before = contents(own)
    with pytest.raises(CacheError, match=r"and shard 1 .*: nothing else has its texts"):
        repaired(own)
    assert contents(own) == before
