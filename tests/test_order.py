"""The order of training is a pure function: the same from anywhere, each row once an epoch."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from student.order import Mode, Order, permuted

MODES: tuple[Mode, ...] = ("shuffle", "window", "corpus")
GOLDEN_ROWS: dict[tuple[Mode, int], list[int]] = {
    ("shuffle", 3): [170, 510, 3, 310, 858, 994, 81, 328],
    ("window", 3): [331, 142, 381, 336, 83, 186, 272, 290],
    ("window", 60): [621, 615, 479, 629, 452, 241, 786, 638],
    ("corpus", 3): [24, 25, 26, 27, 28, 29, 30, 31],
}

every_mode = pytest.mark.parametrize("mode", MODES)


def order_of(mode: Mode, rows: int, batch: int, seed: int = 0) -> Order:
    return Order(rows, batch, seed, mode, rows_per_shard=10, window_shards=3)


@given(size=st.integers(1, 700), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_shuffle_gives_every_row_once(size: int, seed: int, epoch: int) -> None:
    rows = permuted(np.arange(size), size, seed, epoch)
    assert sorted(rows.tolist()) == list(range(size))


@every_mode
def test_rows_of_a_step_do_not_depend_on_when_they_are_asked_for(mode: Mode) -> None:
    forward = [order_of(mode, 100, 7, 3).rows_of(step) for step in range(40)]
    order = order_of(mode, 100, 7, 3)
    for step in (39, 0, 17, 17, 5):
        assert np.array_equal(order.rows_of(step), forward[step])


@every_mode
@given(rows=st.integers(3, 130), batch=st.integers(1, 80), seed=st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_batches_are_full_and_every_epoch_has_every_row_once(
    mode: Mode, rows: int, batch: int, seed: int
) -> None:
    order = order_of(mode, rows, batch, seed)
    steps = -(-3 * rows // batch)
    sequence = np.concatenate([order.rows_of(step) for step in range(steps)])
    assert len(sequence) == steps * batch
    for epoch in range(3):
        assert sorted(sequence[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_seeds_and_epochs_give_unlike_orders() -> None:
    base = permuted(np.arange(1000), 1000, 0, 0)
    for key in ((1, 0), (0, 1), (1, 1), (0, 0, 1)):
        assert (permuted(np.arange(1000), 1000, *key) == base).sum() < 10


def test_a_shuffle_leaves_no_trace_of_the_order_it_came_from() -> None:
    # Of n random numbers, neighbours are as often rising as falling, and place and value are
    # uncorrelated with standard deviation 1/sqrt(n).
    rows = permuted(np.arange(20_000), 20_000, 5, 2)
    assert abs((np.diff(rows) > 0).mean() - 0.5) < 0.02
    assert abs(np.corrcoef(np.arange(20_000), rows)[0, 1]) < 0.03


def test_a_window_holds_whole_shards_shuffled_among_themselves() -> None:
    # 107 rows in 11 shards, the last of 7 rows, in windows of 3, 3, 3 and 2 shards.
    orders = []
    for epoch in range(6):
        rows = order_of("window", 107, 107, seed=4).rows_of(epoch)
        orders.append(rows.tolist())
        assert any(windows_are_whole(rows, short) for short in range(4))
        changes = np.count_nonzero(np.diff(rows // 10))
        assert changes > 50, "the shards of a window follow one another"
    assert len({tuple(order) for order in orders}) == 6
    assert len({frozenset(row // 10 for row in order[:20]) for order in orders}) > 3


def windows_are_whole(rows: NDArray[np.int64], short: int) -> bool:
    sizes = np.array([30, 30, 30, 20])
    sizes[short] -= 3
    windows = np.split(rows, np.cumsum(sizes)[:-1])
    held = [sum(7 if shard == 10 else 10 for shard in set(window // 10)) for window in windows]
    return held == sizes.tolist()


def test_a_window_is_announced_before_its_rows_are_read() -> None:
    order = order_of("window", 107, 8, seed=1)
    current = set((order_of("window", 107, 27, seed=1).rows_of(0) // 10).tolist())
    following = set(order.shards_next(0))
    for step in range(80):  # six epochs; a batch lies in two windows at most
        shards = set((order.rows_of(step) // 10).tolist())
        assert shards <= current | following
        announced = set(order.shards_next(step))
        if announced != following:
            current, following = following, announced
    assert order_of("shuffle", 107, 8).shards_next(3) == ()


@every_mode
def test_a_place_of_a_hundred_million_rows_needs_no_table(mode: Mode) -> None:
    order = Order(100_000_000, 4096, seed=1, mode=mode)
    tracemalloc.start()
    rows = order.rows_of(10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 4096
    assert peak < 3 * 2**20


@pytest.mark.parametrize(("mode", "step"), list(GOLDEN_ROWS))
def test_the_order_of_an_old_run_is_the_order_of_today(mode: Mode, step: int) -> None:
    # A run must be repeatable for years: these rows were written down with format version 1.
    order = Order(1000, 8, 42, mode, rows_per_shard=64, window_shards=4)
    assert order.rows_of(step).tolist() == GOLDEN_ROWS[mode, step]
