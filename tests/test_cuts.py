from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from student.cuts import MARKS, cheapest_parts

RNG = np.random.default_rng(0)


def padded(lengths: list[int], parts: list[slice]) -> int:
    return sum(len(lengths[part]) * max(lengths[part]) for part in parts)


def best_of_all(lengths: list[int], parts: int) -> int:
    """Every way to cut, tried."""
    places = range(1, len(lengths))
    return min(
        padded(lengths, [slice(a, b) for a, b in zip([0, *cut], [*cut, None], strict=True)])
        for cut in combinations(places, parts - 1)
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_no_other_cut_has_fewer_tokens(parts: int) -> None:
    for _ in range(20):
        lengths = sorted(RNG.geometric(0.1, size=11).tolist())
        assert padded(lengths, cheapest_parts(lengths, parts)) == best_of_all(lengths, parts)


@pytest.mark.parametrize("texts", [0, 1, 2, 5, 6, 7, 64, MARKS + 1, 3 * MARKS + 7])
def test_parts_follow_each_other_and_are_as_many_as_asked(texts: int) -> None:
    lengths = sorted(RNG.integers(1, 9, size=texts).tolist())  # far fewer lengths than texts
    parts = cheapest_parts(lengths, 6)
    assert len(parts) == min(6, texts)
    assert all(len(lengths[part]) for part in parts)
    assert [n for part in parts for n in range(texts)[part]] == list(range(texts))


def test_of_many_texts_the_cut_is_nearly_the_best() -> None:
    lengths = sorted((1 + RNG.geometric(0.05, size=3000)).tolist())
    exact = cheapest_parts([lengths[i] for i in range(0, 3000, 12)], 6)
    found = padded(lengths, cheapest_parts(lengths, 6))
    assert found <= 1.02 * 12 * padded([lengths[i] for i in range(11, 3000, 12)], exact)
