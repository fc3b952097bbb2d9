"""How the yardstick scores, and how it takes the time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from yardstick.ledger import Job
from yardstick.measure import kept_neighbours
from yardstick.scores import Share, mean_of, ndcg, share_of
from yardstick.shortlist import recall
from yardstick.stopwatch import WARM, Seconds, Stopwatch
from yardstick.summary import Finding
from yardstick.tried import by_chance

from student.encoding import FloatArray, unit


def sorted_ndcg(queries: FloatArray, documents: FloatArray, query: int) -> float:
    """By the definition: sort all documents, sum the discounted gains of the first ten."""
    similar = documents.astype(np.float64) @ queries[query].astype(np.float64)
    similar /= np.linalg.norm(documents.astype(np.float64), axis=1)
    order = sorted(range(len(documents)), key=lambda place: -similar[place])
    return sum((place == query) / math.log2(i + 2) for i, place in enumerate(order[:10]))


def test_ndcg_is_the_one_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(600, 8)).astype(np.float32)
    queries = documents + rng.normal(size=(600, 8)).astype(np.float32) * 0.7
    found = ndcg(queries, documents)
    expected = [sorted_ndcg(queries, documents, query) for query in range(600)]
    assert np.allclose(found, expected)
    assert 0.2 < found.mean() < 0.8
    assert (found == 0).any()


def test_of_equal_documents_the_right_one_comes_last() -> None:
    rows = np.eye(3, dtype=np.float32)
    documents = rows[[0, 0, 2]]
    assert ndcg(rows, documents) == pytest.approx([1 / math.log2(3), 1 / math.log2(4), 1.0])
    assert ndcg(rows * np.nan, documents).max() < 1


def test_standard_error_of_a_share_is_the_jackknifes() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.uniform(size=400)
    student = np.clip(teacher * 0.9 + rng.normal(size=400) * 0.1, 0, 1)
    share = share_of(student, teacher)
    without = (student.sum() - student) / (teacher.sum() - teacher)
    jackknife = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    assert share.share == pytest.approx(student.mean() / teacher.mean())
    assert share.standard_error == pytest.approx(jackknife, rel=0.01)
    assert share_of(teacher, teacher).standard_error == 0


def test_tasks_that_ask_the_same_pairs_err_together() -> None:
    """Against the spread of the mean over many draws of the pairs."""
    rng = np.random.default_rng(0)
    names = [list(range(300)), list(range(300)), list(range(300, 700))]

    def shares() -> list[Share]:
        hard = rng.normal(size=300) * 0.2  # of a pair, in either direction
        gains = [0.8 + hard + rng.normal(size=300) * 0.1 for _ in range(2)]
        gains.append(0.7 + rng.normal(size=400) * 0.2)
        return [share_of(found, np.full(len(found), 0.9)) for found in gains]

    drawn = [mean_of(shares(), names) for _ in range(2000)]
    spread = np.std([mean.share for mean in drawn])
    assert np.mean([mean.standard_error for mean in drawn]) == pytest.approx(spread, rel=0.05)
    apart = [names[0], range(1000, 1300), names[2]]
    assert mean_of(shares(), apart).standard_error < 0.9 * spread


def test_error_of_a_difference_is_that_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.uniform(0.5, 1, size=500)
    common = rng.normal(size=500) * 0.2
    one, two = (teacher * s + common + rng.normal(size=500) * 0.02 for s in (0.9, 0.8))
    mine, theirs = (share_of(student, teacher) for student in (one, two))
    found = np.linalg.norm(mine.parts - theirs.parts)
    without = [((x.sum() - x) / (teacher.sum() - teacher)) for x in (one, two)]
    gap = without[0] - without[1]
    assert found == pytest.approx(math.sqrt(499 / 500 * ((gap - gap.mean()) ** 2).sum()), rel=0.01)
    assert found < 0.3 * mine.standard_error


def test_a_short_list_holds_the_right_document_or_not() -> None:
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(300, 8)).astype(np.float32)
    queries = documents + rng.normal(size=(300, 8)).astype(np.float32) * 1.5
    kept = [
        sum(unit(documents) @ unit(query[None])[0] > unit(documents)[own] @ unit(query[None])[0])
        < 100
        for own, query in enumerate(queries)
    ]
    assert 0.5 < np.mean(kept) < 1
    assert recall(queries, documents) == pytest.approx(np.mean(kept))


def test_neighbours_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    teacher, student = (unit(rng.normal(size=(60, 6)).astype(np.float32)) for _ in range(2))
    kept = []
    for row in range(60):
        others = [
            sorted(set(range(60)) - {row}, key=lambda other: -float(rows[row] @ rows[other]))[:10]
            for rows in (teacher, student)
        ]
        kept.append(len(set(others[0]) & set(others[1])) / 10)
    assert kept_neighbours(student, teacher) == pytest.approx(np.mean(kept))
    assert kept_neighbours(teacher, teacher) == 1


def test_the_stopwatch_knows_what_a_killed_process_took(tmp_path: Path) -> None:
    """Ten steps, killed in the seventh, whose checkpoint was after the fifth."""
    file = tmp_path / "stage.seconds"
    first = Stopwatch(file)
    with first.solving("fc2", 1):
        sum(range(200_000))
    for done in range(7):
        first.step(done)
    taken = first.taken
    assert taken.wall > 0
    again = Stopwatch(file)
    assert again.taken == taken
    lines = file.read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(7))
    file.write_text("".join(f"{step} 1 2\n" for step in range(7)))
    again = Stopwatch(file)
    for done in range(5, 11):
        again.step(done)
    anew = [list(map(float, line.split())) for line in file.read_text().splitlines()[7:]]
    assert [step for step, _, _ in anew] == [6, 7, 8, 9, 10]
    cpu, wall = (sum(line[place] for line in anew) for place in (1, 2))
    assert again.taken.cpu == pytest.approx(6 + cpu)  # 0 to 5 as before; the sixth anew
    assert again.taken.wall == pytest.approx(12 + wall)
    whole = Stopwatch(file)
    assert whole.costs["cpu"].before == 1
    assert whole.costs["wall"].step == pytest.approx((2 * (5 - WARM) + wall) / (10 - WARM))
    assert whole.taken == again.taken


def test_a_stopwatch_without_a_file_counts_from_the_first_mark() -> None:
    watch = Stopwatch()
    watch.step(0)
    watch.step(1)
    assert watch.taken == Seconds(watch.costs["cpu"].step, watch.costs["wall"].step)
    assert watch.costs["cpu"].before == 0


def test_what_two_equal_lines_differ_by_is_known_from_all_lines() -> None:
    rng = np.random.default_rng(0)
    job = Job("train", "default", (0, 1, 5), 1e-3, {"2": 5})

    def line(seeds: int) -> Finding:
        results = []
        for _ in range(seeds):
            share, cosine = 0.95 + rng.normal() * 0.003, 0.9 + rng.normal() * 0.001
            kept = {name: {"mean": share} for name in ("fc2", "fc3")}
            mean = {name: {"share": share} for name in ("fc1", "asymmetric")}
            figures = {
                "mean": mean,
                "tasks": {"a task": {"fc1": {"share": share}}},
                "of fc1": kept,
                "retention": {"all": {"fc1": {"cosine": cosine, "neighbours": cosine}}},
            }
            results.append({"figures": figures})
        return Finding("default", (0, 1, 5), {}, job, results)

    found = by_chance([line(2) for _ in range(400)])
    assert found == pytest.approx([0.003] * 5 + [0.001] * 2, rel=0.1)
    assert by_chance([line(4) for _ in range(400)])[0] == pytest.approx(0.003 / 2**0.5, rel=0.1)
    assert by_chance([line(1)]) == [0.0] * 7
