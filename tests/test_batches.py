from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from small_caches import write_cache

from student.batches import batches, cached, made_ahead, texts_of
from student.model import Student, create
from student.order import Mode, Order
from student.spec import StudentSpec
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def student(small_encoder: Path) -> Student:
    spec = StudentSpec(init="-", reduced_heads={}, max_tokens=24)
    return create(spec, small_encoder, target_width=20, seed=0)


def test_each_row_comes_with_its_own_text_and_target(reader: CacheReader, student: Student) -> None:
    order = Order(len(reader.train_rows), 12, seed=5)
    samples = cached(reader, texts_of(reader, student))
    for step, batch in zip(range(2, 6), batches(samples, order, range(2, 6)), strict=True):
        assert batch.step == step
        assert np.array_equal(batch.rows, order.rows_of(step))
        assert np.array_equal(batch.target.numpy(), reader.vectors(batch.rows))
        rows = [ids[mask.bool()].tolist() for chunk in batch.texts.chunks for ids, mask in
                zip(*chunk, strict=True)]  # fmt: skip
        expected = student.tokenizer.encode(reader.texts(batch.rows))
        assert [rows[i] for i in batch.texts.order.tolist()] == expected


@pytest.mark.parametrize("mode", ["shuffle", "window", "corpus"])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_global_batch_is_the_same_for_any_number_of_processes_and_any_resume_point(
    reader: CacheReader, student: Student, mode: Mode, seed: int
) -> None:
    order = Order(len(reader.train_rows), 12, seed, mode, rows_per_shard=64, window_shards=2)
    steps = range(20, 40)  # an epoch is 200 rows: two of them end on the way
    samples = cached(reader, texts_of(reader, student))
    whole = [batch.rows.tolist() for batch in batches(samples, order, steps)]
    for processes, resumed in product((1, 2, 3, 4, 6, 12), (20, 21, 33, 39)):
        shares = [
            list(batches(samples, order, steps[resumed - 20 :], process=process,
                         processes=processes))
            for process in range(processes)
        ]  # fmt: skip
        gathered = [
            [int(row) for part in parts for row in part.rows] for parts in zip(*shares, strict=True)
        ]
        assert gathered == whole[resumed - 20 :], (processes, resumed)


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
