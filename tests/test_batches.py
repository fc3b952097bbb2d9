from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_caches import write_cache

from student.batches import Order, batches, made_ahead, permuted
from student.model import create
from student.spec import StudentSpec
from teacher_cache.reader import CacheReader

GOLDEN_ROWS = [170, 510, 3, 310, 858, 994, 81, 328]


@given(size=st.integers(1, 700), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_shuffle_gives_every_row_once(size: int, seed: int, epoch: int) -> None:
    rows = permuted(np.arange(size), size, seed, epoch)
    assert sorted(rows.tolist()) == list(range(size))


def test_a_place_of_a_hundred_million_rows_needs_no_table() -> None:
    rows = permuted(np.array([0, 1, 99_999_999]), 100_000_000, 0, 0)
    assert len(set(rows.tolist())) == 3
    assert rows.max() < 100_000_000


def test_rows_of_a_step_do_not_depend_on_when_they_are_asked_for() -> None:
    forward = [Order(100, 7, 3).rows_of(step) for step in range(40)]
    order = Order(100, 7, 3)
    for step in (39, 0, 17, 17, 5):
        assert np.array_equal(order.rows_of(step), forward[step])


@given(rows=st.integers(3, 60), batch=st.integers(1, 80))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_batches_are_full_and_every_epoch_has_every_row_once(rows: int, batch: int) -> None:
    order = Order(rows, batch, 1)
    steps = -(-3 * rows // batch)
    sequence = np.concatenate([order.rows_of(step) for step in range(steps)])
    assert len(sequence) == steps * batch
    for epoch in range(3):
        assert sorted(sequence[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_seeds_and_epochs_give_unlike_orders() -> None:
    base = permuted(np.arange(1000), 1000, 0, 0)
    for seed, epoch in ((1, 0), (0, 1), (1, 1)):
        assert (permuted(np.arange(1000), 1000, seed, epoch) == base).sum() < 10


def test_a_shuffle_leaves_no_trace_of_the_order_it_came_from() -> None:
    # Of n random numbers, neighbours are as often rising as falling, and place and value are
    # uncorrelated with standard deviation 1/sqrt(n).
    rows = permuted(np.arange(20_000), 20_000, 5, 2)
    assert abs((np.diff(rows) > 0).mean() - 0.5) < 0.02
    assert abs(np.corrcoef(np.arange(20_000), rows)[0, 1]) < 0.03


def test_the_order_of_an_old_run_is_the_order_of_today() -> None:
    # A run must be repeatable for years: these rows were written down with format version 1.
    assert Order(1000, 8, 42).rows_of(3).tolist() == GOLDEN_ROWS


def test_processes_share_a_step_and_each_row_comes_with_its_text_and_target(
    small_encoder: Path, tmp_path: Path
) -> None:
    reader = CacheReader(write_cache(tmp_path))
    spec = StudentSpec(init="-", reduced_heads={}, max_tokens=24)
    student = create(spec, small_encoder, target_width=20, seed=0)
    order = Order(len(reader.train_rows), 12, seed=5)
    shares = [
        list(batches(reader, student, order, range(2, 6), process=process, processes=3))
        for process in range(3)
    ]
    for step, parts in zip(range(2, 6), zip(*shares, strict=True), strict=True):
        assert [part.step for part in parts] == [step] * 3
        together = [int(row) for part in parts for row in part.rows]
        assert sorted(together) == sorted(order.rows_of(step).tolist())
        for part in parts:
            assert np.array_equal(part.target.numpy(), reader.vectors(part.rows))
            rows = [ids[mask.bool()].tolist() for chunk in part.texts.chunks for ids, mask in
                    zip(*chunk, strict=True)]  # fmt: skip
            expected = student.tokenizer.encode(reader.texts(part.rows))
            assert [rows[i] for i in part.texts.order.tolist()] == expected


def test_work_is_made_in_order_and_not_far_ahead() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * 10

    results = made_ahead(make, range(50), depth=3)
    assert [next(results) for _ in range(5)] == [0, 10, 20, 30, 40]
    assert len(made) <= 5 + 3
    assert list(results) == [item * 10 for item in range(5, 50)]


def test_a_failure_reaches_the_one_who_waits_for_it() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise KeyError("row 2")
        return item

    results: Iterator[int] = made_ahead(make, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError, match="row 2"):
        next(results)
