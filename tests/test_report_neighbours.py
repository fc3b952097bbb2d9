"""Pairs and neighbours of a report, against the same said plainly in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from student.report.neighbours import BINS, NEAREST, SAMPLES, density, samples


def vectors(rows: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    theirs = rng.normal(size=(rows, 7)).astype(np.float32)
    own = theirs[:, :5] + rng.normal(size=(rows, 5)).astype(np.float32)
    return theirs, own * 3


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_a_density_counts_every_pair_where_its_two_cosines_are() -> None:
    theirs, own = vectors()
    found = density("left", "fc1", theirs, own)
    pairs = [(cosine(theirs[i], theirs[j]), cosine(own[i], own[j]))
             for i in range(30) for j in range(i + 1, 30)]  # fmt: skip
    counts = np.array(found.counts)
    assert found.pairs == counts.sum() == len(pairs) == 435
    expected = np.zeros((BINS, BINS), int)
    for pair in pairs:
        place = [
            int(np.clip((value - low) / (high - low) * BINS, 0, BINS - 1))
            for value, (low, high) in zip(
                pair, (found.teacher_range, found.student_range), strict=True
            )
        ]
        expected[tuple(place)] += 1
    # Rounding may put a pair on the other side of an edge.
    assert np.abs(expected - counts).sum() <= 6
    ranks = [rankdata([pair[side] for pair in pairs]) for side in (0, 1)]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_a_pair_far_out_does_not_shrink_all_others() -> None:
    points = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    points[1] = points[0]
    found = density("left", "fc1", points, points)
    assert found.teacher_range[1] < 0.7
    counts = np.array(found.counts)
    assert counts.sum() == found.pairs == 100 * 99 // 2
    assert counts[-1, -1] >= 1


def test_vectors_that_are_all_equal_have_no_order_and_do_not_fail() -> None:
    same = np.ones((5, 4), np.float32)
    assert density("left", "fc1", same, same).spearman == 0.0


def test_pairs_need_three_rows() -> None:
    few = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"at least 3: 2, 2"):
        density("left", "fc1", few, few)


def test_neighbours_are_the_nearest_others_and_those_of_both_sides_agree() -> None:
    theirs, own = vectors()
    texts = [f"text {row}" for row in range(30)]
    rows = range(100, 130)
    found = samples(theirs, own, texts, rows)
    assert len(found) == SAMPLES
    assert (found[0].row, found[-1].row) == (100, 129)
    agreeing = 0
    for sample in found:
        place = rows.index(sample.row)
        assert sample.text == texts[place]
        nearest = []
        for side in (theirs, own):
            others = [row for row in range(30) if row != place]
            others.sort(key=lambda row: -cosine(side[place], side[row]))
            nearest.append(others[:NEAREST])
        assert [n.row - 100 for n in sample.teacher] == nearest[0]
        assert [n.row - 100 for n in sample.student] == nearest[1]
        common = set(nearest[0]) & set(nearest[1])
        agreeing += len(common)
        for neighbour in (*sample.teacher, *sample.student):
            assert neighbour.agrees == (neighbour.row - 100 in common)
            assert neighbour.text == f"text {neighbour.row - 100}"
        for neighbour in sample.student:
            exact = cosine(own[place], own[neighbour.row - 100])
            assert neighbour.cosine == pytest.approx(exact, abs=6e-5)
    assert 0 < agreeing < SAMPLES * NEAREST


def test_of_few_rows_there_are_few_samples_and_neighbours() -> None:
    theirs, own = vectors(4)
    found = samples(theirs, own, list("abcd"), range(4))
    assert [sample.row for sample in found] == [0, 1, 2, 3]
    assert all(len(sample.teacher) == len(sample.student) == 3 for sample in found)
