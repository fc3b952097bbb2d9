"""A build that is killed and run again ends as if nothing had happened; so do many at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Deaths = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trials(memory_folder: Path) -> dict[str, Deaths]:
    script = Path(__file__).with_name("crashing.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(memory_folder)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Deaths] = json.loads(result.stdout)
    return found


def test_build_killed_again_and_again_ends_byte_for_byte_the_same(
    trials: dict[str, Deaths],
) -> None:
    found = trials["again_and_again"]
    assert [death["differs"] for death in found] == [[]] * len(found)
    # How many deaths a seed brings is the machine's affair; that there are some is the test's.
    assert sum(len(death["left"]) for death in found) >= 4


@pytest.mark.parametrize("trial", ["competing", "sharing"])
def test_builders_of_one_cache_may_be_killed_and_stopped(
    trial: str, trials: dict[str, Deaths]
) -> None:
    """One that is woken when the cache is finished changes nothing, though its vectors differ."""
    for outcome in trials[trial]:
        assert outcome["problems"] == []
        assert outcome["texts"]
        assert outcome["changed"] == []
    assert sum(outcome["kills"] for outcome in trials[trial]) >= 3
    assert trial == "sharing" or sum(outcome["stopped"] for outcome in trials[trial]) >= 4
