"""A stage that trains heads alone takes the pooled states from the cache, if they are its own."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import bert, corpus, lsa, made, write_corpus
from small_models import write_encoder
from transformers import BertModel

from student.model import create, load
from student.run import StageRun, read_record
from student.spec import StudentError, StudentSpec
from student.stages import stage
from student.train import Settings, train
from teacher_cache.reader import CacheReader

PROMPT, LONGEST = "query: ", 24
QUICK = {"steps": 8, "batch_size": 16, "learning_rate": 1e-2, "probe_every": 4}


@pytest.fixture(scope="module")
def reader(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """A cache that keeps the states of `small_encoder`."""
    folder = tmp_path_factory.mktemp("kept")
    write_corpus(folder)
    changes = {"prompts": {"default": PROMPT}, "max_tokens": LONGEST, "dtype": "float32"}
    made(
        folder / "cache", corpus(folder), [bert(small_encoder, keep_pooled=True, **changes), lsa()]
    )
    return CacheReader(folder / "cache")


def run_of(reader: CacheReader, out: Path, **changes: Any) -> StageRun:
    """Stage 1; `changes` are those of the student, or of the stage."""
    fields = {name: changes.pop(name) for name in [*changes] if name in StudentSpec.model_fields}
    spec = {"init": "-", "reduced_heads": {"fc2": 6}, "max_tokens": LONGEST, "prompt": PROMPT}
    return StageRun(
        out=out, stage=1, spec=stage(1, {**QUICK, **changes}),
        student=StudentSpec.model_validate({**spec, **fields}), identity=reader.identity,
        teachers=reader.teachers, seed=0,
    )  # fmt: skip


def losses_of(run: StageRun, reader: CacheReader, init: Path, pooled: str) -> list[float]:
    found: list[float] = []

    def on_step(done: int, metrics: dict[str, float]) -> None:
        if done:
            found.append(metrics["loss"])

    settings = Settings(cpu=True, pooled=pooled)  # type: ignore[arg-type]
    train(run, reader, init, settings=settings, on_step=on_step)
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"closed_form": ["fc1", "fc2"], "learning_rate": 1e-3, "order": "corpus"}]
)
def test_heads_learn_from_kept_states_what_they_learn_from_texts(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    texts, states = (run_of(reader, tmp_path / name, **changes) for name in ("texts", "states"))
    by_text = losses_of(texts, reader, small_encoder, "off")
    by_state = losses_of(states, reader, small_encoder, "auto")
    assert by_state == pytest.approx(by_text, rel=2e-3)
    assert len(set(by_state)) == 8
    figures = [read_record(run.folder)["figures"] for run in (texts, states)]
    assert [each["inputs"] for each in figures] == ["texts", "pooled states"]
    assert figures[1]["probe.score"] == pytest.approx(figures[0]["probe.score"], abs=2e-3)
    one, two = (load(run.model).state_dict() for run in (texts, states))
    start = create(states.student, small_encoder, reader.width(), seed=0).state_dict()
    assert one.keys() == two.keys() == start.keys()
    for name, value in two.items():
        if name.startswith("text."):
            assert torch.equal(value, start[name]), "the saved student has its whole body"
        else:
            assert float((value - one[name]).norm() / value.norm()) < 2e-2, name
    solved = not torch.equal(two["heads.fc2.weight"], start["heads.fc2.weight"])
    assert solved == ("closed_form" in changes), "a head that is solved need not be trained"


@pytest.mark.parametrize("pooled", ["require", "off"])
def test_no_body_is_in_memory_while_heads_learn_from_kept_states(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, pooled: str
) -> None:
    bodies = []

    def on_step(done: int, _metrics: object) -> None:
        if done not in (1, 8):
            return
        gc.collect()
        bodies.append(sum(type(each) is BertModel for each in gc.get_objects()))

    gc.collect()
    before = sum(type(each) is BertModel for each in gc.get_objects())
    settings = Settings(cpu=True, pooled=pooled)  # type: ignore[arg-type]
    train(run_of(reader, tmp_path), reader, small_encoder, settings=settings, on_step=on_step)
    assert bodies == [before + (pooled == "off")] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "passage: "}, "prompt is 'passage: ', bert's 'query: '"),
        ({"max_tokens": 20}, "reads 20 tokens, bert 24"),
        ({"layers": [0, 2]}, r"keeps layers \[0, 2\] of the body alone"),
        ({"trains": ["fc1", "layers[-1:]"]}, "the stage trains the body"),
    ],
)
def test_states_of_another_student_are_not_taken(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    said: list[str] = []
    run = run_of(reader, tmp_path, **changes)
    with pytest.raises(StudentError, match=f"--pooled require: .*{reason}"):
        train(run, reader, small_encoder, settings=Settings(cpu=True, pooled="require"))
    train(run, reader, small_encoder, settings=Settings(cpu=True), say=said.append)
    assert read_record(run.folder)["figures"]["inputs"] == "texts"
    assert said[0].startswith("texts: encoded at every step, since the st")


def test_states_of_another_body_are_not_taken(reader: CacheReader, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(StudentError, match="the student's body is not bert's"):
        train(
            run_of(reader, tmp_path), reader, other, settings=Settings(cpu=True, pooled="require")
        )


def test_a_cache_without_states_is_read_by_its_texts(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = run_of(cache, tmp_path)
    with pytest.raises(StudentError, match="the cache keeps no pooled state"):
        train(run, cache, small_encoder, settings=Settings(cpu=True, pooled="require"))
    assert train(run, cache, small_encoder, settings=Settings(cpu=True))


def test_states_that_the_encoder_does_not_compute_are_not_taken(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(reader.path, cache)
    state = reader.pooled([0])
    wrong = (state.astype(np.float32) * 1.1).astype(np.float16)
    (shard,) = (cache / "shards").glob("00000-*.arrow")
    shard.write_bytes(shard.read_bytes().replace(state.tobytes(), wrong.tobytes()))
    damaged = CacheReader(cache)
    assert not np.array_equal(damaged.pooled([0]), state)
    run = run_of(damaged, tmp_path / "run")
    with pytest.raises(StudentError, match=r"the state of row 0 is 10\.0% off what the encoder"):
        train(run, damaged, small_encoder, settings=Settings(cpu=True, pooled="require"))


def test_a_stage_begun_on_states_does_not_go_on_with_texts(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = run_of(reader, tmp_path)

    def stop(done: int, _: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    settings = Settings(cpu=True, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(run, reader, small_encoder, settings=settings, on_step=stop)
    with pytest.raises(StudentError, match=r"another inputs \(pooled states\) than this run's"):
        train(run, reader, small_encoder, settings=replace(settings, pooled="off"))
    steps = []
    train(run, reader, small_encoder, settings=settings, on_step=lambda done, _: steps.append(done))
    assert steps == [2, 3, 4, 5, 6, 7, 8]
    whole = run_of(reader, tmp_path / "whole")
    train(whole, reader, small_encoder, settings=settings)
    one, two = (load(each.model).state_dict() for each in (run, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)
