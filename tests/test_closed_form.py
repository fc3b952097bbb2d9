from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import SENTENCES, write_cache

from student.closed_form import Moments, reduce, ridge, start_heads
from student.encoding import encode
from student.fitting import fitted
from student.model import create
from student.order import Order
from student.spec import StudentSpec
from teacher_cache.reader import CacheReader

RNG = np.random.default_rng(0)


def with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    for start in range(0, len(x), 7):
        moments.add(x[start : start + 7].astype(np.float32), y[start : start + 7])
    return moments


def test_without_regularisation_ridge_is_least_squares() -> None:
    x = RNG.standard_normal((60, 5)).astype(np.float32)
    y = RNG.standard_normal((60, 3))
    expected, *_ = np.linalg.lstsq(with_one(x), y, rcond=None)
    assert np.allclose(ridge(moments_of(x, y), 0.0), expected.T, atol=1e-9)


def test_ridge_is_the_minimum_of_its_objective() -> None:
    x = (RNG.standard_normal((40, 4)) + 3).astype(np.float32)
    y = RNG.standard_normal((40, 2))
    penalty = 0.3 * 40 * x.astype(float).var(axis=0).mean()

    def objective(head: np.ndarray) -> float:
        return float(((with_one(x) @ head.T - y) ** 2).sum() + penalty * (head[:, :-1] ** 2).sum())

    best = ridge(moments_of(x, y), 0.3)
    least = objective(best)
    for _ in range(20):
        assert objective(best + 1e-3 * RNG.standard_normal(best.shape)) > least


def test_reduced_head_has_the_best_products_of_its_width() -> None:
    x = with_one(RNG.standard_normal((50, 6)))
    full = RNG.standard_normal((9, 7))
    outputs = x @ full.T
    left, values, _ = np.linalg.svd(outputs, full_matrices=False)
    for width in (1, 3, 7):
        best = (left[:, :width] * values[:width] ** 2) @ left[:, :width].T
        mine = x @ reduce(full, x.T @ x, width).T
        assert np.allclose(mine @ mine.T, best, atol=1e-8)


def test_more_directions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 4 directions, asked for 5"):
        reduce(np.eye(4), np.eye(4), 5)


def test_heads_are_set_from_the_rows_of_the_cache(small_encoder: Path, tmp_path: Path) -> None:
    reader = CacheReader(write_cache(tmp_path))
    spec = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24)
    student = create(spec, small_encoder, target_width=20, seed=0)
    body = {name: value.clone() for name, value in student.text.state_dict().items()}
    untouched = student.heads["fc3"].weight.clone()
    rows = reader.train_rows
    target = reader.vectors(rows).astype(float)
    ways = {"fc1": "ridge", "fc2": "principal"}
    start_heads(
        student, reader, reader.teachers, ways,
        rows=10**6, seed=0, init=small_encoder, teacher_weights={},
    )  # fmt: skip

    found = encode(student, reader.texts(rows), ["fc1", "fc2"])
    x = with_one(found["pooled"].astype(float))
    least, *_ = np.linalg.lstsq(x, target, rcond=None)
    rest = ((x @ least - target) ** 2).sum()
    assert ((found["fc1"] - target) ** 2).sum() < 1.5 * rest + 0.1
    products = found["fc1"].astype(float) @ found["fc1"].T.astype(float)
    values, vectors = np.linalg.eigh(products)
    best = (vectors[:, -6:] * values[-6:]) @ vectors[:, -6:].T
    assert np.allclose(found["fc2"] @ found["fc2"].T, best, atol=1e-3)
    assert (student.heads["fc3"].weight == untouched).all()
    assert all((student.text.state_dict()[name] == value).all() for name, value in body.items())


def test_fc1_can_begin_as_the_pooled_state_itself(small_encoder: Path, tmp_path: Path) -> None:
    reader = CacheReader(write_cache(tmp_path))
    spec = StudentSpec(init="-", reduced_heads={"fc2": 6}, max_tokens=24)
    student = create(spec, small_encoder, target_width=32, seed=0)
    ways = {"fc1": "identity", "fc2": "principal"}
    start_heads(
        student, reader, reader.teachers, ways,
        rows=10**6, seed=0, init=small_encoder, teacher_weights={},
    )  # fmt: skip
    texts = reader.texts(reader.train_rows)
    found = encode(student, texts, ["fc1", "fc2"])
    assert np.allclose(found["fc1"], found["pooled"], atol=1e-7)
    values, vectors = np.linalg.eigh(found["pooled"].astype(float) @ found["pooled"].T)
    best = (vectors[:, -6:] * values[-6:]) @ vectors[:, -6:].T
    assert np.allclose(found["fc2"] @ found["fc2"].T, best, atol=1e-3)


def test_a_fitted_head_is_fc1_followed_by_one_map_of_the_teachers_vectors(
    small_encoder: Path, tmp_path: Path
) -> None:
    reader = CacheReader(write_cache(tmp_path))
    spec = StudentSpec(init="-", reduced_heads={"fc2": 6}, max_tokens=24)
    student = create(spec, small_encoder, target_width=20, seed=0)
    start_heads(
        student, reader, reader.teachers, {"fc2": "fitted"},
        rows=100, seed=3, init=small_encoder, teacher_weights={}, focus={"fc2": 0.1},
    )  # fmt: skip
    rows = Order(len(reader.train_rows), 100, 3).rows_of(0)
    expected = fitted(reader.vectors(rows), 6, 0.1, seed=3)
    found = encode(student, SENTENCES[:9], ["fc1", "fc2"])
    assert np.allclose(found["fc2"], found["fc1"] @ expected.T, atol=1e-5)
