"""What a stage started from is part of what it is; and beginning it anew loses nothing too soon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import contents, copy
from small_caches import write_cache
from small_models import change_weights
from stage_runs import SPEC, interrupted, stage_run

from student.run import StageRun, read_record, start_of
from student.spec import StudentError
from student.stages import StageError
from student.train import Settings, train
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def run_on(reader: CacheReader, out: Path, number: int, **changes: Any) -> StageRun:
    """A stage that starts from the one before it; the first from the untrained student."""
    return replace(stage_run(reader, out, number, **changes), init_from=None)


def go(run: StageRun, reader: CacheReader, init: Path, *, restart: bool = False) -> bool:
    return train(run, reader, init, restart=restart, settings=Settings(cpu=True))


def trained(reader: CacheReader, init: Path, out: Path, *numbers: int) -> Path:
    for number in numbers:
        assert go(run_on(reader, out, number), reader, init)
    return out


def test_a_stage_whose_start_was_trained_otherwise_since_is_not_done(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path, 1, 2, 3)
    assert go(run_on(reader, out, 2, steps=5), reader, small_encoder, restart=True)
    third = run_on(reader, out, 3)
    with pytest.raises(StudentError, match=r"stage-2 is now; give another --out, or --restart"):
        go(third, reader, small_encoder)
    assert go(third, reader, small_encoder, restart=True)
    assert not go(third, reader, small_encoder)


def test_a_start_that_was_trained_anew_as_it_was_or_moved_is_the_same(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path / "run", 1, 2)
    assert go(run_on(reader, out, 1), reader, small_encoder, restart=True)
    assert not go(run_on(reader, out, 2), reader, small_encoder)
    moved = out.rename(tmp_path / "moved")
    again = replace(run_on(reader, moved, 1), init_from="fresh")
    assert go(again, reader, copy(small_encoder, tmp_path / "init"), restart=True)
    assert not go(run_on(reader, moved, 2), reader, small_encoder)


def test_a_start_is_the_same_however_its_folder_is_named(
    reader: CacheReader, small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(reader, small_encoder, tmp_path / "run", 1) / "stage-1"
    monkeypatch.chdir(tmp_path)
    run = replace(run_on(reader, tmp_path / "other", 2), init_from="run/stage-1")
    interrupted(run, reader, small_encoder, 2)
    monkeypatch.chdir(first)
    run = replace(run, init_from=str(first))
    assert go(run, reader, small_encoder)
    assert not go(replace(run, init_from="../stage-1"), reader, small_encoder)
    assert read_record(run.folder)["init_from"] == str(first), "wherever it is read from"


def test_a_change_of_the_untrained_student_reaches_every_later_stage(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    init = copy(small_encoder, tmp_path / "init")
    out = trained(reader, init, tmp_path / "run", 1, 2)
    change_weights(init, "embeddings.word_embeddings.weight", lambda value: value.mul_(2))
    with pytest.raises(StudentError, match=r"from another student than what - is now; .*--restart"):
        go(run_on(reader, out, 1), reader, init)
    assert not go(run_on(reader, out, 2), reader, init), "what it started from is as it was"
    assert go(run_on(reader, out, 1), reader, init, restart=True)
    with pytest.raises(StudentError, match=r"than what .*stage-1 is now"):
        go(run_on(reader, out, 2), reader, init)


def test_a_checkpoint_is_not_laid_over_another_start(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path, 1, 2)
    third = run_on(reader, out, 3)
    interrupted(third, reader, small_encoder, 2)
    assert go(run_on(reader, out, 2, steps=5), reader, small_encoder, restart=True)
    with pytest.raises(StudentError, match=r"written with another start .* or --restart to begin"):
        go(third, reader, small_encoder)


def test_what_older_versions_wrote_without_a_start_is_taken_as_it_is(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path, 1)
    second = run_on(reader, out, 2)
    state = interrupted(second, reader, small_encoder, 2)
    for file in (out / "stage-1" / "run.json", state):
        facts = json.loads(file.read_text())
        del facts["start"]
        file.write_text(json.dumps(facts))
    assert not go(run_on(reader, out, 1), reader, small_encoder)
    assert go(second, reader, small_encoder)


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        ("nowhere", {}, "holds no trained stage"),
        ("{out}/../run/stage-1", {}, "is the stage that is to be trained"),
        (None, {"trains": ["layers[9]"]}, "matches none of"),
        (None, {"keep": "best", "probe_every": 0}, "asks for looks at held-out rows"),
    ],
)
def test_a_stage_that_is_to_begin_anew_stays_where_that_is_refused(
    reader: CacheReader,
    small_encoder: Path,
    tmp_path: Path,
    start: str | None,
    changes: dict[str, Any],
    message: str,
) -> None:
    out = trained(reader, small_encoder, tmp_path / "run", 1)
    before = contents(out)
    init_from = None if start is None else start.format(out=out)
    run = replace(run_on(reader, out, 1, **changes), init_from=init_from)
    with pytest.raises((StudentError, StageError), match=message):
        go(run, reader, small_encoder, restart=True)
    assert contents(out) == before


def test_a_stage_that_begins_anew_leaves_nothing_of_what_it_was(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path, 1)
    folder = out / "stage-1"
    (folder / "evaluation.json").write_text("{}")
    assert go(run_on(reader, out, 1, steps=5), reader, small_encoder, restart=True)
    assert not (folder / "evaluation.json").exists()
    assert read_record(folder)["stage"]["steps"] == 5
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_start_that_another_recipe_made_is_refused_by_its_record(
    reader: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    out = trained(reader, small_encoder, tmp_path, 1)
    other = SPEC.model_copy(update={"max_tokens": 7})
    with pytest.raises(StudentError, match=r"max_tokens was 64, is now 7; give the recipe"):
        start_of(run_on(reader, out, 2, spec=other))
