from __future__ import annotations

import numpy as np
import pytest

from student.encoding import unit
from student.fitting import fitted

RNG = np.random.default_rng(0)


def vectors(rows: int) -> np.ndarray:
    """Unit rows in clusters: of most pairs nothing is near, of some all is."""
    centres = np.random.default_rng(1).standard_normal((40, 24)) * np.linspace(3, 0.3, 24)
    return unit(centres[RNG.integers(40, size=rows)] + RNG.standard_normal((rows, 24)))


def error(found: np.ndarray, teacher: np.ndarray, focus: float | None) -> float:
    """The similarity loss, in float64, by hand."""
    own, target = (unit(x).astype(float) @ unit(x).astype(float).T for x in (found, teacher))
    counts = np.ones_like(target) if focus is None else np.exp(target / focus)
    np.fill_diagonal(counts, 0)
    return float((counts * (own - target) ** 2).sum() / counts.sum())


@pytest.mark.parametrize("focus", [None, 0.2])
def test_no_map_nearby_and_no_projection_keeps_similarities_better(focus: float | None) -> None:
    train, others = vectors(3000), vectors(500)
    found = fitted(train.astype(np.float16), 6, focus, seed=0)
    assert found.shape == (6, 24)
    reached = error(others @ found.T, others, focus)
    _, _, directions = np.linalg.svd(train, full_matrices=False)
    assert reached < 0.95 * error(others @ directions[:6].T, others, focus)
    for _ in range(10):
        shift = RNG.standard_normal(found.shape)
        near = found + 0.1 * shift * np.linalg.norm(found) / np.linalg.norm(shift)
        assert error(others @ near.T, others, focus) > 0.99 * reached


def test_each_focus_is_best_at_what_it_looks_at() -> None:
    train, others = vectors(3000), vectors(500)
    plain, near = (fitted(train.astype(np.float16), 6, focus, seed=0) for focus in (None, 0.1))
    assert error(others @ near.T, others, 0.1) < error(others @ plain.T, others, 0.1)
    assert error(others @ plain.T, others, None) < error(others @ near.T, others, None)


def test_rows_and_seed_decide_the_map() -> None:
    train = vectors(700).astype(np.float16)
    one, two, other = (fitted(train, 4, 0.1, seed=seed) for seed in (0, 0, 1))
    assert (one == two).all()
    assert not np.allclose(one, other)
