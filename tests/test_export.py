from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from student.encoding import encode
from student.export import export
from student.model import Student, create
from student.spec import StudentError, StudentSpec
from student.stages import StageError

TEXTS = ["the river in the morning", "a", "seven clocks " * 40, "Music, again!"]
RECORD = {
    "number": 3,
    "trained_heads": ["fc1", "fc2"],
    "cache": "0123456789abcdef",
    "blocks": [
        {"teacher": "left", "repository": "org/left", "width": 6, "licence": "cc-by-nc-4.0"}
    ],
}


@pytest.fixture(scope="module")
def student(small_encoder: Path) -> Student:
    spec = StudentSpec(
        init=str(small_encoder), layers=(0, 2), reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24
    )
    return create(spec, small_encoder, target_width=10, seed=0)


@pytest.mark.parametrize(
    ("head", "width"), [("fc1", 10), ("fc2", 6), ("fc1[:4]", 4), ("pooled", 32)]
)
def test_exported_folder_gives_the_students_own_vectors(
    student: Student, tmp_path: Path, head: str, width: int
) -> None:
    out = tmp_path / "out"
    export(student, out, head=head, record=RECORD)
    model = SentenceTransformer(str(out), device="cpu")
    found = model.encode(TEXTS)
    expected = encode(student, TEXTS, [] if head == "pooled" else [head])[head]
    if head != "pooled":
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.shape == (len(TEXTS), width)
    assert np.abs(found - expected).max() < 1e-5
    assert model.max_seq_length == 24
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_export_is_safetensors_and_carries_no_code(student: Student, tmp_path: Path) -> None:
    export(student, tmp_path / "out", head="fc1", record=RECORD)
    suffixes = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".txt"}


def test_prompt_of_the_student_goes_with_it(small_encoder: Path, tmp_path: Path) -> None:
    spec = StudentSpec(init="-", reduced_heads={}, max_tokens=24, prompt="the river ")
    student = create(spec, small_encoder, target_width=10, seed=0)
    export(student, tmp_path / "out", head="pooled", record=RECORD)
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert np.abs(found - encode(student, TEXTS, [])["pooled"]).max() < 1e-5


def test_card_names_the_teachers_and_their_licences(student: Student, tmp_path: Path) -> None:
    export(student, tmp_path / "out", head="fc1", record=RECORD)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| left | org/left | 6 | cc-by-nc-4.0 |" in card
    assert "0123456789abcdef" in card


def test_folder_that_is_not_empty_is_refused_and_left_alone(
    student: Student, tmp_path: Path
) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(StudentError, match="is not an empty folder"):
        export(student, tmp_path, head="fc1", record=RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("fc7", "the run has no head 'fc7'; it can give fc1, fc2, pooled"),
        ("fc3", "the run has not trained 'fc3'; it can give fc1, fc2, pooled"),
        ("fc3[:2]", r"the run has not trained 'fc3\[:2\]'; it can give fc1, fc2, pooled"),
        ("fc2[:6]", r"fc2\[:6\] is no part of fc2, which is 6 wide"),
    ],
)
def test_head_that_the_run_cannot_give_is_refused(
    student: Student, tmp_path: Path, head: str, message: str
) -> None:
    with pytest.raises((StudentError, StageError), match=message):
        export(student, tmp_path / "out", head=head, record=RECORD)
    assert not (tmp_path / "out").exists()
