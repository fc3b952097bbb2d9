"""A training that is killed and run again ends as if nothing had happened, in every stage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Deaths = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deaths]:
    script = Path(__file__).with_name("training.py")
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("training"))],
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    found: dict[str, Deaths] = json.loads(result.stdout)
    return found


def test_a_training_killed_at_random_moments_ends_bit_for_bit_where_an_unbroken_one_does(
    trials: dict[str, Deaths],
) -> None:
    assert [death["stage"] for death in trials["killed_at_random"]] == [1, 2, 3]
    for death in trials["killed_at_random"]:
        assert death["deaths"]
        assert death["differs"] == []
        assert death["files"] == ["metrics.jsonl", "model", "run.json", "tensorboard"]


def test_a_stage_that_keeps_its_best_still_knows_it_after_being_killed(
    trials: dict[str, Deaths],
) -> None:
    last, best, _ = (death["kept"] for death in trials["killed_at_random"])
    assert last["kept"] == last["steps"] == 14
    assert best["kept"] == best["best"]["step"] < 14


def test_a_death_at_any_moment_of_saving_leaves_a_whole_checkpoint_and_the_best(
    trials: dict[str, Deaths],
) -> None:
    deaths = trials["killed_while_saving"]
    assert all(death["good"] for death in deaths)
    newest = [death["newest"] for death in deaths]
    assert newest == sorted(newest)
    # At least a folder, three files, their syncs and the rename before; the parent's sync after.
    assert newest.count(4) >= 6
    assert newest.count(5) >= 3


def test_the_next_save_removes_what_a_death_left(trials: dict[str, Deaths]) -> None:
    for death in trials["killed_while_saving"]:
        best = "step-00000002" if death["newest"] == 4 else "step-00000005"
        last = f"step-{death['newest']:08d}"
        assert death["after"] == sorted({best, last, "step-00000006"})


def test_a_loss_that_is_no_number_stops_both_of_two_processes(trials: dict[str, Deaths]) -> None:
    ranks = trials["no_number_on_two"]
    assert [rank["code"] for rank in ranks] == [2, 2], ranks
    for rank in ranks:
        assert "the loss of step 1 is nan: nothing was changed by it" in rank["said"]
        assert not {"checkpoints", "model", "run.json"} & set(rank["left"])
    rows = [rank["said"].split("its rows begin ")[1].split(";")[0] for rank in ranks]
    assert rows[0] != rows[1], "each names rows of its own"
