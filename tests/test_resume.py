"""What an interrupted stage goes on from: its figures, its clock, its best step so far."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from small_caches import write_cache
from stage_runs import interrupted, stage_run

from student.run import StageRun, read_record
from student.train import Settings, train
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def change(state: Path, **changes: Any) -> None:
    state.write_text(json.dumps({**json.loads(state.read_text()), **changes}))


def resumed(run: StageRun, reader: CacheReader, init: Path) -> dict[str, Any]:
    """Train the rest; give the figures of the record."""
    assert train(run, reader, init, settings=Settings(cpu=True))
    figures: dict[str, Any] = read_record(run.folder)["figures"]
    return figures


def test_a_torn_last_line_of_metrics_does_not_keep_a_stage_from_going_on(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, 1)
    interrupted(run, reader, small_encoder, 2)
    metrics = run.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 3, "lo')
    resumed(run, reader, small_encoder)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [4]


def test_the_seconds_of_a_stage_are_those_of_all_its_steps(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, 1)
    began = time.perf_counter()
    state = interrupted(run, reader, small_encoder, 2)
    assert 0 < json.loads(state.read_text())["seconds"] < time.perf_counter() - began
    change(state, seconds=1000.0)
    began = time.perf_counter()
    seconds = resumed(run, reader, small_encoder)["seconds"]
    assert 1000 < seconds < 1000 + time.perf_counter() - began


def test_a_look_without_a_number_is_not_the_best_one(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = stage_run(reader, tmp_path, 1, probe_every=1, probe_rows=20, keep="best")
    state = interrupted(run, reader, small_encoder, 1)
    assert json.loads(state.read_text())["best"]["step"] == 1
    change(state, best={"step": 1, "score": math.nan})
    figures = resumed(run, reader, small_encoder)
    assert figures["kept"] == figures["best"]["step"] > 1
    assert not math.isnan(figures["best"]["score"])
