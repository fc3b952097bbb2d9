"""A join, merge or export that is killed and run again ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Deaths = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deaths]:
    script = Path(__file__).with_name("assembling.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path_factory.mktemp("assembling"))],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Deaths] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("work", "folders"), [("join", 2), ("merge", 1)])
def test_work_killed_before_any_of_its_files_has_its_name_ends_byte_for_byte_the_same(
    work: str, folders: int, trials: dict[str, Deaths]
) -> None:
    deaths = trials[work]
    assert len(deaths) > 10
    assert [death["differs"] for death in deaths] == [[]] * len(deaths)
    assert all(any(".tmp" in name for name in death["left"]) for death in deaths)
    # Every file, and every folder of a teacher, was about to get its name once; the last was the
    # manifest.
    last = [name for name in deaths[-1]["left"] if not name.endswith(".tmp")]
    assert len(last) + folders == len(deaths) - 1
    assert "manifest.json" not in last


def test_export_shows_nothing_before_it_is_whole_and_goes_on_where_it_died(
    trials: dict[str, Deaths],
) -> None:
    deaths = trials["export"]
    assert [death["differs"] for death in deaths] == [[]] * len(deaths)
    left = [name for death in deaths for name in death["left"]]
    assert all(name.startswith(".folder.unfinished/") for name in left)
    # The last one dies when nothing is missing but the folder's name.
    assert any(name.endswith("README.md") for name in deaths[-1]["left"])
    assert len(deaths) == 2 + len([name for name in deaths[-1]["left"] if "/data/" in name]) + 1
