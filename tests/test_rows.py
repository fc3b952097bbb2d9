from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import write_cache

from student import batches as under_test
from student.batches import batches, cached, states_of, texts_of
from student.model import create
from student.order import Order
from student.rows import Rows
from student.rows import rows_to_train_on as of_teachers
from student.spec import StudentSpec
from student.stages import StageError, StageSpec, stage
from teacher_cache.format import shard_path
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def spec(longest: int | None, batch_size: int = 8) -> StageSpec:
    return stage(3, {"longest": longest, "batch_size": batch_size})


def rows_to_train_on(reader: CacheReader, spec: StageSpec) -> Rows | None:
    """Of all the cache's teachers."""
    return of_teachers(reader, spec, reader.teachers)


def test_rows_are_those_whose_texts_are_short_enough(reader: CacheReader) -> None:
    lengths = [int(reader.tokens([row]).max()) for row in reader.train_rows]
    for longest in (min(lengths) + 20, 110, max(lengths) - 1, max(lengths)):
        found = rows_to_train_on(reader, spec(longest))
        assert found is not None
        assert found.tolist() == [row for row, n in enumerate(lengths) if n <= longest]
    assert len(found) == len(lengths)
    assert rows_to_train_on(reader, spec(None)) is None


def test_a_teacher_that_is_not_asked_counts_no_tokens(reader: CacheReader) -> None:
    counts = reader.tokens(reader.train_rows)
    assert (counts[:, 0] != counts[:, 1]).any()
    for place, teacher in enumerate(reader.teachers):
        longest = int(np.median(counts[:, place]))
        found = of_teachers(reader, spec(longest), [teacher])
        assert found is not None
        assert found.tolist() == np.flatnonzero(counts[:, place] <= longest).tolist()


def test_fewer_than_a_batch_are_refused_with_what_would_do(reader: CacheReader) -> None:
    with pytest.raises(StageError, match="only 0 of at most 1 tokens") as error:
        rows_to_train_on(reader, spec(1))
    enough = int(str(error.value).rpartition(" = ")[2])
    found = rows_to_train_on(reader, spec(enough))
    assert found is not None
    assert len(found) >= 8
    with pytest.raises(StageError):
        rows_to_train_on(reader, spec(enough - 1))


def test_an_epoch_has_each_short_text_once_with_its_own_target(
    reader: CacheReader, small_encoder: Path
) -> None:
    student = create(StudentSpec(init="-", max_tokens=24), small_encoder, 20, seed=0)
    chosen = rows_to_train_on(reader, spec(105))
    assert chosen is not None
    assert 16 < len(chosen) < len(reader.train_rows)
    samples = cached(reader, texts_of(reader, student), chosen)
    size = len(chosen) // 2
    order = Order(samples.train, size, seed=3)
    seen = []
    for batch in batches(samples, order, range(2)):
        assert np.array_equal(batch.target.numpy(), reader.vectors(batch.rows))
        tokens = [int(mask.sum()) for _, masks in batch.texts.chunks for mask in masks]
        expected = [len(ids) for ids in student.tokenizer.encode(reader.texts(batch.rows))]
        assert [tokens[i] for i in batch.texts.order.tolist()] == expected
        seen += batch.rows.tolist()
    assert len(set(seen)) == 2 * size
    assert set(seen) <= set(chosen.tolist())
    inputs, target = samples.of(samples.held_out)
    del inputs
    assert np.array_equal(target.numpy(), reader.vectors(reader.held_out_rows))


def test_the_shards_read_ahead_are_those_of_the_next_window(
    reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Path]] = []
    monkeypatch.setattr(under_test, "read_ahead", lambda paths: asked.append([*paths]))
    chosen = np.arange(50, 190, 2)  # 70 rows, of shards 0, 1 and 2
    samples = cached(reader, states_of(reader), chosen)
    samples.ahead([1])  # the last 6 of them
    assert asked == [[shard_path(reader.path, 2, reader.manifest.shards[2])]]
    samples.ahead([0])
    assert asked[1] == [shard_path(reader.path, n, reader.manifest.shards[n]) for n in range(3)]
    samples.ahead([])
    assert asked[2] == []
