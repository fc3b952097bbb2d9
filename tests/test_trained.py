"""Which vectors a trained student can give, by what its stages trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from student import load
from student.evaluation.heads import asked
from student.export.folder import export
from student.model import Student, create
from student.spec import StudentError, StudentSpec
from student.trained import Heads

WIDTHS = {"fc1": 10, "fc2": 6, "fc3": 4}
TRAINED = ["fc3", "fc1[:5]", "fc9"]
TEXTS = ["the river in the morning", "seven clocks and one green boat"]


@pytest.fixture(scope="module")
def student(small_encoder: Path) -> Student:
    spec = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24)
    return create(spec, small_encoder, target_width=10, seed=0)


def test_first_columns_that_were_trained_are_given_by_their_name_or_width() -> None:
    heads = Heads.of(WIDTHS, TRAINED)
    assert heads.trained == ("fc1[:5]", "fc3")
    given = {"fc1[:5]": "fc1[:5]", 5: "fc1[:5]", "fc1[:2]": "fc1[:2]", "4": "fc3", "fc3": "fc3"}
    assert {entry: heads.choose(entry) for entry in given} == given
    for more in ("fc1", "fc1[:6]", "fc2"):
        with pytest.raises(
            StudentError, match=r"has not trained .*; it can give fc1\[:5\], fc3, po"
        ):
            heads.choose(more)
    with pytest.raises(
        StudentError, match=r"no trained head is 10 wide: fc1\[:5\] \(5 wide\), fc3"
    ):
        heads.choose(10)
    assert asked("fc1[:5],pooled,fc3", TRAINED, WIDTHS) == ["fc1[:5]", "fc3"]


def test_a_student_of_first_columns_alone_is_loaded_and_exported(
    student: Student, tmp_path: Path
) -> None:
    record = {"number": 3, "trained_heads": ["fc1[:5]"], "cache": "0123", "blocks": []}
    student.save(tmp_path / "stage-3" / "model")
    (tmp_path / "stage-3" / "run.json").write_text(json.dumps(record))
    embedder = load(tmp_path)
    assert embedder.heads == {"fc1[:5]": 5}
    own = embedder.encode(TEXTS, head="fc1[:5]")
    with pytest.raises(StudentError, match="has not trained 'fc1'"):
        embedder.encode(TEXTS)
    export(student, tmp_path / "out", head="5", record=record)
    assert [path.name for path in (tmp_path / "out").glob("2_*")] == ["2_Dense_fc1_5"]
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    assert np.abs(found - own).max() < 1e-6
