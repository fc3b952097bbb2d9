"""What an exported student's card tells, of real stages and of what is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from small_caches import write_cache
from stage_runs import stage_run

from student.evaluation.meanings import MEANINGS
from student.export.folder import export
from student.export.past import Past, past_of
from student.model import load
from student.run import read_record
from student.train import Settings, train
from teacher_cache.reader import CacheReader

EVALUATION = {
    "stage": 3,
    "rows": 48,
    "widths": {"fc1": 20, "fc2": 6},
    "retention": {
        "fc1": {"left": {"cosine": 0.8125, "spearman": 0.5}, "all teachers": {"cosine": 0.75}},
        "fc2": {"left": {"cosine": None, "spearman": 0.25, "recall@1": 0.125}},
    },
    "tasks": [
        {"task": "pairs", "measure": "spearman", "of": "student", "vector": "fc1", "score": 0.625},
        {"task": "pairs", "measure": "spearman", "of": "left", "score": 0.75, "asymmetric": True},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_encoder: Path) -> Path:
    """A run with its first stage and, from that, its third. Its files are not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    reader = CacheReader(write_cache(folder, texts=60))
    for number, start in ((1, "fresh"), (3, str(folder / "run" / "stage-1"))):
        run = replace(stage_run(reader, folder / "run", number, steps=1), init_from=start)
        assert train(run, reader, small_encoder, settings=Settings(cpu=True))
    return folder


def card_of(stage: Path, out: Path, licences: tuple[str, ...] = (), head: str = "fc2") -> ModelCard:
    record = read_record(stage)
    for block, licence in zip(record["blocks"], licences, strict=False):
        block["licence"] = licence
    export(load(stage / "model"), out, head=head, record=record, past=past_of(stage))
    return ModelCard.load(out / "README.md")


def test_card_tells_teachers_texts_and_the_recipe_of_all_stages(
    folder: Path, tmp_path: Path
) -> None:
    text = card_of(folder / "run" / "stage-3", tmp_path / "out").text
    assert "| left | fitted:tfidf-svd | 12 | unknown |" in text
    assert "| 1 | fc1 | fc1: 10 cosine + 200 similarity + 20 relative | 0.001 | 1 | 16 |" in text
    assert "| 3 | text + heads | fc1: 10 cosine" in text
    assert "| made | texts.jsonl | 60 |" in text
    assert str(folder) not in text
    assert "Not measured. `jasper-student evaluate RUN`" in text


def test_card_tells_what_was_measured_as_far_as_it_was(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "stage-3" / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = card_of(run / "stage-3", tmp_path / "out").text
    assert "on 48 held-out texts" in text
    assert "| vector | width | teacher | cosine | spearman | recall@1 |" in text
    assert "| fc1 | 20 | left | 0.812 | 0.500 | - |" in text
    assert "| fc1 | 20 | all teachers | 0.750 | - | - |" in text
    assert "| fc2 | 6 | left | - | 0.250 | 0.125 |" in text
    told = [line for line in text.splitlines() if line.startswith("- ")]
    assert told == [f"- {name}: {MEANINGS[name]}" for name in ("cosine", "spearman", "recall@1")]
    assert text.endswith("| pairs | spearman | student | fc1 | 0.625 |\n")


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("cc-by-nc-4.0", "mit"), "cc-by-nc-4.0"),
        (("cc-by-nc-4.0", "cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (("cc-by-nc-4.0", "other-nc-terms"), "other"),
        (("apache-2.0", "mit"), "other"),
    ],
)
def test_card_claims_no_licence_that_is_free(
    folder: Path, tmp_path: Path, licences: tuple[str, ...], expected: str
) -> None:
    card = card_of(folder / "run" / "stage-3", tmp_path / "out", licences)
    assert card.data.license == expected
    assert (card.data.get("license_name") == "undecided") == (expected == "other")
    for teacher, licence in zip(("left", "right"), licences, strict=True):
        assert f"| {licence} |" in card.text
        bound = f"`{teacher}` ({licence})" in card.text
        assert bound == ("-nc" in licence)


def test_card_is_written_where_cache_and_stages_are_gone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run" / "stage-3", tmp_path / "stage-3")
    record = tmp_path / "stage-3" / "run.json"
    record.write_text(record.read_text().replace(str(folder), str(tmp_path / "gone")))
    past = past_of(tmp_path / "stage-3")
    assert past == Past((read_record(tmp_path / "stage-3"),), None, None)
    text = card_of(tmp_path / "stage-3", tmp_path / "out").text
    assert "it was not found when this card was written" in text
    assert "| 3 | text + heads |" in text


def test_what_was_measured_before_a_stage_of_images_still_holds(
    folder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "stage-1" / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert past_of(run / "stage-3").evaluation is None
    record = json.loads((run / "stage-3" / "run.json").read_text())
    record["stage"]["trains"] = ["vision", "pooler"]
    record["init_from"] = str(run / "stage-1")
    (run / "stage-3" / "run.json").write_text(json.dumps(record))
    assert past_of(run / "stage-3").evaluation == EVALUATION


def test_front_matter_names_model_and_data_by_their_hub_ids(folder: Path, tmp_path: Path) -> None:
    stage = folder / "run" / "stage-3"
    student, past = load(stage / "model"), past_of(stage)
    assert past.cache is not None
    student.spec = student.spec.model_copy(update={"init": "org/body"})
    corpus = {
        "merged": [
            {"sources": [{"name": "web", "dataset": "org/web"}]},
            {"sources": [{"name": "made", "path": "/secret/texts.jsonl"}]},
            {"sources": [{"name": "seen", "pairs": {"dataset": "org/seen"}}]},
            {"sources": [{"name": "shot", "pairs": {"path": "/secret/shots.tar"}}]},
        ]
    }
    past = replace(past, cache=replace(past.cache, corpus=corpus))
    export(student, tmp_path / "out", head="fc1", record=read_record(stage), past=past)
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.base_model == "org/body"
    assert data.datasets == ["org/web", "org/seen"]
    assert data.library_name == "sentence-transformers"
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| web | org/web | - |" in text
    assert "| seen | captions of org/seen | - |" in text
    assert "| shot | captions of shots.tar | - |" in text
    assert "secret" not in text


def test_commands_of_the_card_name_folders_that_are_there(folder: Path, tmp_path: Path) -> None:
    text = card_of(folder / "run" / "stage-3", tmp_path / "out", head="fc1[:5]").text
    assert "unit-length vectors 5 wide (`fc1[:5]`)" in text
    for entry in ("fc1_5", "fc1", "fc2", "fc3", "fc4"):
        assert f"`2_Dense_{entry}`" in text
        assert (tmp_path / "out" / f"2_Dense_{entry}" / "model.safetensors").is_file()


def test_a_folder_is_no_model_on_the_hub_and_its_place_is_not_told(
    folder: Path, tmp_path: Path
) -> None:
    stage = folder / "run" / "stage-3"
    student, record = load(stage / "model"), read_record(stage)
    student.spec = student.spec.model_copy(update={"init": "models/body"})
    record["init_path"] = "/scratch/secret/models/body"
    record["blocks"][0]["repository"] = "/scratch/secret/left-model"
    export(student, tmp_path / "out", head="fc1", record=record)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None
    assert "It started from `models/body`" in card.text
    assert "| left | left-model | 12 |" in card.text
    assert "secret" not in card.content
