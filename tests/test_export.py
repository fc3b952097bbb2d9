from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_stella
from sentence_transformers import SentenceTransformer

from student.encoding import encode
from student.export.folder import export
from student.model import Student, create
from student.spec import StudentError, StudentSpec
from student.stages import StageError

TEXTS = ["the river in the morning", "a", "seven clocks " * 40, "Music, again!"]
RECORD = {
    "number": 3,
    "trained_heads": ["fc1", "fc2", "fc4"],
    "cache": "0123456789abcdef",
    "blocks": [
        {"teacher": "left", "repository": "org/left", "width": 6, "licence": "cc-by-nc-4.0"}
    ],
}
OUTSIDE = """
import sys
for name in ("cli", "data", "student", "teacher_cache"):
    sys.modules[name] = None
import numpy as np
from sentence_transformers import SentenceTransformer
folder, texts, out = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu", local_files_only=True)
np.save(out, model.encode(open(texts).read().splitlines()))
"""


@pytest.fixture(scope="module")
def student(small_encoder: Path) -> Student:
    spec = StudentSpec(
        init=str(small_encoder),
        layers=(0, 2),
        reduced_heads={"fc2": 6, "fc3": 4, "fc4": 4},
        max_tokens=24,
    )
    return create(spec, small_encoder, target_width=10, seed=0)


@pytest.fixture(scope="module")
def folder(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with FC2 as its default. Its files are not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(student, out, head="fc2", record=RECORD)
    return out


def own(student: Student, head: str, texts: list[str] = TEXTS) -> np.ndarray:
    """The student's vectors of a head at length 1, in float64."""
    vectors = encode(student, texts, [head])[head].astype(np.float64)
    return vectors / np.sqrt((vectors**2).sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("asked", "head", "width"),
    [("fc1", "fc1", 10), ("fc2", "fc2", 6), ("fc1[:4]", "fc1[:4]", 4), ("6", "fc2", 6)],
)
def test_exported_folder_gives_the_students_own_vectors(
    student: Student, tmp_path: Path, asked: str, head: str, width: int
) -> None:
    out = tmp_path / "out"
    export(student, out, head=asked, record=RECORD)
    model = SentenceTransformer(str(out), device="cpu")
    found = model.encode(TEXTS)
    assert found.shape == (len(TEXTS), width)
    assert np.abs(found - own(student, head)).max() < 1e-6
    assert model.max_seq_length == 24
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_pooled_is_the_body_alone_and_raw(student: Student, tmp_path: Path) -> None:
    export(student, tmp_path / "out", head="pooled", record=RECORD)
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert np.abs(found - encode(student, TEXTS, [])["pooled"]).max() < 1e-6
    assert not list((tmp_path / "out").glob("2_*"))


def test_folder_loads_where_this_project_is_not(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    texts = ["the river in the morning", "a", "seven clocks " * 40]
    (tmp_path / "texts").write_text("\n".join(texts))
    done = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, folder, tmp_path / "texts", tmp_path / "found.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "found.npy") - own(student, "fc2", texts)).max() < 1e-6


def test_every_trained_head_is_in_the_folder_and_can_be_chosen(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    assert {path.name for path in folder.glob("2_*")} == {f"2_Dense_fc{n}" for n in (1, 2, 4)}
    model = SentenceTransformer(str(folder), device="cpu")
    model[2] = type(model[2]).load(str(folder / "2_Dense_fc1")).to(model.device)
    assert np.abs(model.encode(TEXTS) - own(student, "fc1")).max() < 1e-6
    assert model.get_embedding_dimension() == 10
    # For good: one line of a copy.
    copy = tmp_path / "copy"
    export(student, copy, head="fc2", record=RECORD)
    modules = copy / "modules.json"
    modules.write_text(modules.read_text().replace("2_Dense_fc2", "2_Dense_fc4"))
    found = SentenceTransformer(str(copy), device="cpu").encode(TEXTS)
    assert np.abs(found - own(student, "fc4")).max() < 1e-6


def test_first_columns_can_be_taken_when_the_folder_is_loaded(
    student: Student, folder: Path
) -> None:
    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=3)
    found = model.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(found - own(student, "fc2[:3]")).max() < 1e-6


def test_modules_have_the_names_that_every_release_knows(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{kind}"
        for kind in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense_fc2", "3_Normalize"]
    # What older releases ask for by name.
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


def test_export_is_safetensors_and_carries_no_code(folder: Path) -> None:
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md"}


def test_files_have_the_usual_permissions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {usual}


def test_prompt_of_the_student_goes_with_it(small_encoder: Path, tmp_path: Path) -> None:
    spec = StudentSpec(init="-", reduced_heads={}, max_tokens=24, prompt="the river ")
    student = create(spec, small_encoder, target_width=10, seed=0)
    export(student, tmp_path / "out", head="fc1", record=RECORD)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = own(student, "fc1")
    for way in (model.encode, model.encode_query, model.encode_document):
        assert np.abs(way(TEXTS) - expected).max() < 1e-6


def test_a_body_that_attends_both_ways_says_what_it_needs(
    folder: Path, student: Student, tmp_path: Path
) -> None:
    write_stella(tmp_path / "stella")
    stella = create(StudentSpec(init="-", reduced_heads={}), tmp_path / "stella", 10, seed=0)
    export(stella, tmp_path / "out", head="fc1", record=RECORD)
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert np.abs(found - own(stella, "fc1")).max() < 1e-6
    name = "config_sentence_transformers.json"
    needs = json.loads((tmp_path / "out" / name).read_text())["requirements"]
    assert needs["transformers"]["specifier"] == ">=5.2"
    assert "Qwen2Model that attends both ways" in (tmp_path / "out" / "README.md").read_text()
    assert "requirements" not in json.loads((folder / name).read_text())


def test_folder_that_is_not_empty_is_refused_and_left_alone(
    student: Student, tmp_path: Path
) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(StudentError, match="is not an empty folder"):
        export(student, tmp_path, head="fc1", record=RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_the_working_folder_is_refused_though_it_is_empty(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudentError, match=r"is the working folder; give a folder in it"):
        export(student, Path(), head="fc1", record=RECORD)
    assert not list(tmp_path.iterdir())


def test_a_link_to_an_empty_folder_leads_to_what_was_written(
    student: Student, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    export(student, tmp_path / "out", head="fc1", record=RECORD)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "modules.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_export_that_fails_leaves_nothing(student: Student, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="blocks"):
        export(student, tmp_path / "out", head="fc1", record={"trained_heads": ["fc1"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("fc7", "the run has no head 'fc7'; it can give fc1, fc2, fc4, pooled"),
        ("fc3", "the run has not trained 'fc3'; it can give fc1, fc2, fc4, pooled"),
        ("fc3[:2]", r"the run has not trained 'fc3\[:2\]'; it can give fc1, fc2, fc4, pooled"),
        ("fc2[:6]", r"fc2\[:6\] is no part of fc2, which is 6 wide"),
        ("5", r"no trained head is 5 wide: fc1 \(10 wide\), fc2 \(6 wide\), fc4 \(4 wide\)"),
        ("fc2[6]", "is no head: expected a name like fc2"),
    ],
)
def test_head_that_the_run_cannot_give_is_refused(
    student: Student, tmp_path: Path, head: str, message: str
) -> None:
    with pytest.raises((StudentError, StageError), match=message):
        export(student, tmp_path / "out", head=head, record=RECORD)
    assert not (tmp_path / "out").exists()


def test_width_of_two_heads_names_both(student: Student, tmp_path: Path) -> None:
    record = {**RECORD, "trained_heads": ["fc1", "fc3", "fc4"]}
    with pytest.raises(StudentError, match=r"2 trained heads are 4 wide: .*fc3 \(4 wide\), fc4"):
        export(student, tmp_path / "out", head="4", record=record)
