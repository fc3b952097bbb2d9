from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_caches import write_cache

from student.encoding import encode
from student.evaluation.retention import Geometry, compare
from student.model import create, load
from student.run import StageRun, read_record
from student.spec import StudentError, StudentSpec
from student.stages import StageError, stage
from student.train import Settings, train
from teacher_cache.reader import CacheReader

SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4, "fc4": 3}, max_tokens=24)
QUICK = {"steps": 6, "batch_size": 16, "learning_rate": 1e-2}
EXPECTED_TO_CHANGE = {
    1: ("heads.fc1.",),
    2: ("heads.fc1.", "text.encoder.layer.0.", "text.encoder.layer.1.", "text.encoder.layer.2."),
    3: ("heads.", "text.embeddings.", "text.encoder."),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def run_of(reader: CacheReader, out: Path, number: int, **changes: object) -> StageRun:
    fields = {
        "out": out,
        "stage": number,
        "spec": stage(number, QUICK),
        "student": SPEC,
        "identity": reader.identity,
        "teachers": reader.teachers,
        "seed": 0,
    }
    return StageRun(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(
    reader: CacheReader, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with its three stages."""
    out = tmp_path_factory.mktemp("run")
    for number in (1, 2, 3):
        assert train(run_of(reader, out, number), reader, small_encoder)
    return out


@pytest.mark.parametrize("number", [1, 2, 3])
def test_exactly_the_named_parameters_change_bit_for_bit(
    trained: Path, small_encoder: Path, number: int
) -> None:
    before = (
        create(SPEC, small_encoder, 20, seed=0)
        if number == 1
        else load(trained / f"stage-{number - 1}" / "model")
    ).state_dict()
    after = load(trained / f"stage-{number}" / "model").state_dict()
    assert before.keys() == after.keys()
    for name, value in after.items():
        should = name.startswith(EXPECTED_TO_CHANGE[number])
        # A word that no text of this cache has gets no gradient, but weight decay moves it.
        assert torch.equal(before[name], value) != should, name


def test_training_brings_fc1_nearer_to_its_target(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    spec = stage(1, {**QUICK, "steps": 60})
    losses = []
    run = run_of(reader, tmp_path, 1, spec=spec)

    def on_step(done: int, metrics: dict[str, float]) -> None:
        if done:
            losses.append(metrics["fc1.cosine"])

    train(run, reader, small_encoder, on_step=on_step)
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_closed_form_starts_a_stage_nearer_to_its_target(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    first: dict[str, float] = {}
    for name, heads in (("random", ()), ("solved", ("fc1",))):
        spec = stage(1, {**QUICK, "steps": 1, "closed_form": heads})
        run = run_of(reader, tmp_path / name, 1, spec=spec)
        train(
            run, reader, small_encoder,
            on_step=lambda _, m, name=name: first.update({name: m.get("fc1.cosine", 0.0)}),
        )  # fmt: skip
    assert first["solved"] < 0.5 * first["random"]


def test_closed_form_wider_than_the_pooled_state_is_refused(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    wide = SPEC.model_copy(update={"reduced_heads": {**SPEC.reduced_heads, "fc2": 33}})
    spec = stage(3, {**QUICK, "closed_form": ["fc2"]})
    run = run_of(reader, tmp_path, 3, spec=spec, student=wide, init_from="fresh")
    with pytest.raises(StageError, match="fc2 is 33 wide, the student's pooled state 32"):
        train(run, reader, small_encoder)


def test_metrics_and_record_say_what_ran(trained: Path, reader: CacheReader) -> None:
    folder = trained / "stage-3"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6]
    weights = {"cosine": 10, "similarity": 200, "relative": 20}
    parts = {
        f"{head}.{loss}"
        for head in ("fc1", "fc2", "fc3", "fc4")
        for loss in weights
        if loss != "cosine" or head == "fc1"
    }
    assert parts <= set(lines[0])
    total = sum(weights[name.split(".")[1]] * lines[0][name] for name in parts)
    assert lines[0]["loss"] == pytest.approx(total, rel=1e-5)
    record = read_record(folder)
    assert record["cache"] == reader.identity
    assert [block["licence"] for block in record["blocks"]] == ["unknown", "unknown"]
    assert record["trained_heads"] == ["fc1", "fc2", "fc3", "fc4"]
    assert read_record(trained / "stage-2")["trained_heads"] == ["fc1"]
    assert (folder / "tensorboard").is_dir()
    assert not (folder / "checkpoints").exists()


def test_resumed_stage_ends_bit_for_bit_where_an_unbroken_one_does(
    reader: CacheReader, small_encoder: Path, trained: Path, tmp_path: Path
) -> None:
    whole = run_of(reader, tmp_path / "whole", 3, init_from=str(trained / "stage-2"))
    train(whole, reader, small_encoder)
    broken = replace(whole, out=tmp_path / "broken")

    def stop(done: int, _: object) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, reader, small_encoder, settings=Settings(save_every=2), on_step=stop)
    steps = []
    train(broken, reader, small_encoder, on_step=lambda done, _: steps.append(done))
    assert steps == [4, 5, 6]
    one, two = (load(run.model).state_dict() for run in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)


def probed(reader: CacheReader, out: Path, **changes: object) -> StageRun:
    spec = stage(1, {**QUICK, "steps": 7, "probe_every": 2, "probe_rows": 30, **changes})
    return run_of(reader, out, 1, spec=spec)


def scores(run: StageRun) -> dict[int, float]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["probe.score"] for line in lines}


def order_on_held_out_rows(run: StageRun, reader: CacheReader) -> float:
    """FC1's, by the evaluation's own way, over the sample that the probe describes."""
    rows = [reader.held_out_rows[int(i)] for i in np.linspace(0, 39, 30)]
    vectors = encode(load(run.model), reader.texts(rows), ["fc1"])["fc1"]
    target = reader.vectors(rows).astype(np.float32)
    return compare(Geometry.of(vectors), Geometry.of(target), same_space=True)["spearman"]


def test_held_out_rows_are_looked_at_and_change_nothing(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run, unseen = probed(reader, tmp_path / "a"), probed(reader, tmp_path / "b", probe_every=0)
    for each in (run, unseen):
        train(each, reader, small_encoder)
    assert list(scores(run)) == [2, 4, 6, 7]
    assert scores(run)[7] == pytest.approx(order_on_held_out_rows(run, reader), abs=1e-5)
    figures = read_record(run.folder)["figures"]
    assert figures["best"]["step"] == max(scores(run), key=lambda step: scores(run)[step])
    assert figures["kept"] == 7
    one, two = (load(each.model).state_dict() for each in (run, unseen))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_best_step_becomes_the_model_where_the_stage_keeps_it(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    # From a solution, at a rate that soon leaves it.
    changes = {"closed_form": ["fc1"], "schedule": "constant", "steps": 12}
    run = probed(reader, tmp_path, keep="best", **changes)
    train(run, reader, small_encoder)
    figures = read_record(run.folder)["figures"]
    best = max(scores(run), key=lambda step: scores(run)[step])
    assert best < 12
    assert figures["kept"] == figures["best"]["step"] == best
    assert scores(run)[best] == pytest.approx(order_on_held_out_rows(run, reader), abs=1e-5)


def test_the_best_of_no_held_out_rows_is_refused(small_encoder: Path, tmp_path: Path) -> None:
    bare = CacheReader(write_cache(tmp_path, texts=80, held_out=0.0))
    with pytest.raises(StageError, match="keep = 'best' asks for looks at held-out rows"):
        train(probed(bare, tmp_path / "run", keep="best"), bare, small_encoder)
    assert train(probed(bare, tmp_path / "run"), bare, small_encoder)


def test_what_a_step_draws_depends_on_the_seed_and_the_step_alone(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    drawn: dict[str, dict[int, float]] = {"whole": {}, "broken": {}}

    def on_step(done: int, _: object, *, name: str, stop: int) -> None:
        if done:
            assert drawn[name].setdefault(done, torch.rand(()).item()) > 0
        if done == stop:
            raise KeyboardInterrupt

    run = run_of(reader, tmp_path / "whole", 1)
    train(run, reader, small_encoder, on_step=partial(on_step, name="whole", stop=99))
    broken = replace(run, out=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(
            broken, reader, small_encoder, settings=Settings(save_every=3),
            on_step=partial(on_step, name="broken", stop=4),
        )  # fmt: skip
    train(broken, reader, small_encoder, on_step=partial(on_step, name="broken", stop=99))
    assert drawn["broken"] == drawn["whole"]
    assert len(set(drawn["whole"].values())) == 6


def test_finished_stage_is_left_alone(
    trained: Path, reader: CacheReader, small_encoder: Path
) -> None:
    model = trained / "stage-2" / "model"
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    assert not train(run_of(reader, trained, 2), reader, small_encoder)
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before


def test_finished_stage_under_other_settings_is_refused(
    trained: Path, reader: CacheReader, small_encoder: Path
) -> None:
    run = run_of(reader, trained, 2, spec=stage(2, {**QUICK, "learning_rate": 0.5}))
    with pytest.raises(StudentError, match=r"learning_rate was 0\.01, is now 0\.5"):
        train(run, reader, small_encoder)


def test_stage_from_another_cache_is_refused_and_left_alone(
    trained: Path, small_encoder: Path, tmp_path: Path
) -> None:
    other = CacheReader(write_cache(tmp_path, seed=1))
    run = run_of(other, tmp_path / "run", 3, init_from=str(trained / "stage-2"))
    with pytest.raises(StudentError, match="was trained from another cache"):
        train(run, other, small_encoder)
    assert not run.folder.exists()


def test_checkpoint_of_another_cache_is_refused(
    trained: Path, reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = run_of(reader, tmp_path, 1)

    def stop(done: int, _: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, reader, small_encoder, settings=Settings(save_every=1), on_step=stop)
    (newest,) = sorted(run.checkpoints.glob("step-*"))[-1:]
    with pytest.raises(StudentError, match="written with another cache"):
        train(replace(run, identity="0" * 32), reader, small_encoder)
    assert newest.is_dir()


def test_stage_without_the_one_before_it_is_refused(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StudentError, match="stage 2 starts from stage 1, which is not in"):
        train(run_of(reader, tmp_path, 2), reader, small_encoder)
    assert train(run_of(reader, tmp_path, 2, init_from="fresh"), reader, small_encoder)


def test_one_teacher_of_two_can_be_learned_from(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    run = run_of(reader, tmp_path, 1, teachers=("right",))
    train(run, reader, small_encoder)
    assert load(run.model).head_widths["fc1"] == 8


def test_loss_that_is_no_number_stops_before_the_step_and_names_its_rows(
    reader: CacheReader, small_encoder: Path, trained: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(trained / "stage-2", start)
    heads = load_file(start / "model" / "heads.safetensors")
    heads["fc1.bias"][3] = math.nan
    save_file(heads, start / "model" / "heads.safetensors")
    run = run_of(reader, tmp_path / "run", 3, init_from=str(start))
    with pytest.raises(StageError, match=r"loss of step 1 is nan.*its rows begin \d+, \d+"):
        train(run, reader, small_encoder)
    assert not run.model.exists()


def test_head_that_trains_without_a_loss_is_refused(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    spec = stage(1, {**QUICK, "trains": ["fc1", "fc2"]})
    with pytest.raises(StageError, match=r"trains heads\.fc2.*none of its losses reaches"):
        train(run_of(reader, tmp_path, 1, spec=spec), reader, small_encoder)


def test_held_out_rows_are_never_trained_on(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    from student.order import Order

    order = Order(len(reader.train_rows), 16, 0)
    rows = {int(row) for step in range(50) for row in order.rows_of(step)}
    assert rows == set(reader.train_rows)
    assert rows.isdisjoint(reader.held_out_rows)
