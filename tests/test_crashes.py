"""A build that is killed and run again ends as if nothing had happened; two share one as well."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Deaths = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deaths]:
    script = Path(__file__).with_name("crashing.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path_factory.mktemp("crashes"))],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Deaths] = json.loads(result.stdout)
    return found


def test_build_killed_before_any_of_its_files_has_its_name_ends_byte_for_byte_the_same(
    trials: dict[str, Deaths],
) -> None:
    deaths = trials["every_call"]
    assert [death["differs"] for death in deaths] == [[]] * len(deaths)
    # Every death left one temporary file and, before the last, everything but the manifest.
    assert all(sum(name.endswith(".tmp") for name in death["left"]) == 1 for death in deaths)
    last = [name for name in deaths[-1]["left"] if not name.endswith(".tmp")]
    assert len(last) == len(deaths) - 1
    assert "shards/00002.json" in last
    assert "manifest.json" not in last


def test_build_killed_again_and_again_ends_byte_for_byte_the_same(
    trials: dict[str, Deaths],
) -> None:
    for death in trials["again_and_again"]:
        assert death["left"], "it was never killed"
        assert death["differs"] == []


def test_rewriting_a_lost_shard_may_be_killed_too(trials: dict[str, Deaths]) -> None:
    """The lost shard's records tell of other bytes: they must not outlive it."""
    assert len(trials["lost_shard"]) == 5
    assert all(death["differs"] == [] for death in trials["lost_shard"])


def test_two_ranks_write_together_what_one_writes_alone(trials: dict[str, Deaths]) -> None:
    (result,) = trials["two_ranks"]
    assert result["differs"] == []
