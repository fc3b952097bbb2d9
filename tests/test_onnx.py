"""The ONNX graph of a student, computed by onnxruntime on its own; and what is said without it."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_stella
from commands import command_of
from tokenizers import Tokenizer

from cli.student import app
from student.encoding import encode
from student.export import onnx_model
from student.export.folder import export
from student.model import Student, create
from student.spec import StudentError, StudentSpec

TEXTS = ["the river in the morning", "a", "seven clocks " * 40, "Music, again!"]
RECORD = {"number": 3, "trained_heads": ["fc1", "fc2"], "cache": "0123", "blocks": []}
SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24, prompt="the river ")

INSTALLED = all(map(find_spec, ("onnx", "onnxruntime", "onnxscript")))
needs_onnx = pytest.mark.skipif(not INSTALLED, reason="the extra `onnx` is not installed")


# A graph takes torch's exporter six seconds, and more on busy cores.
@pytest.fixture(scope="module", params=["bert", pytest.param("stella", marks=pytest.mark.slow)])
def student(
    request: pytest.FixtureRequest, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Student:
    init = small_encoder
    if request.param == "stella":
        init = tmp_path_factory.mktemp("init") / "stella"
        write_stella(init)
    return create(SPEC, init, target_width=10, seed=0)


@needs_onnx
def test_graph_gives_the_students_vectors_by_the_cards_own_code(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    said: list[str] = []
    out = tmp_path / "out"
    export(student, out, head="fc1[:4]", record=RECORD, onnx=True, say=said.append)
    assert re.fullmatch(r"ONNX: within [\d.]+e-0[78] of the student's own vectors", said[-1]), said
    assert [path.name for path in (out / "onnx").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == ["fc1_4", "fc1", "fc2"]
    raw = encode(student, TEXTS, ["fc1[:4]", "fc1", "fc2"])
    for count in (1, 4):
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        tokenizer.enable_truncation(24)
        tokenizer.enable_padding()
        rows = tokenizer.encode_batch(["the river " + text for text in TEXTS[:count]])
        ids = np.array([row.ids for row in rows])
        mask = np.array([row.attention_mask for row in rows])
        found = session.run(None, {"input_ids": ids, "attention_mask": mask})
        for name, vectors in zip(("fc1[:4]", "fc1", "fc2"), found, strict=True):
            expected = raw[name][:count].astype(np.float64)
            expected /= np.sqrt((expected**2).sum(1, keepdims=True))
            assert np.abs(vectors - expected).max() < 1e-5
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[-1]
    monkeypatch.chdir(out)
    found = {}
    exec(code, found)
    expected = encode(student, ["a text", "another"], ["fc1[:4]"])["fc1[:4]"]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found["vectors"] - expected).max() < 1e-5


@needs_onnx
@pytest.mark.slow
def test_graph_that_gives_other_vectors_is_not_handed_out(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "TOLERANCE", 1e-12)
    with pytest.raises(StudentError, match=r"vectors are up to .* from the student's"):
        export(student, tmp_path / "out", head="fc1", record=RECORD, onnx=True)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_pooled_state_has_no_graph(student: Student, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="export a head, not the pooled state"):
        export(student, tmp_path / "out", head="pooled", record=RECORD, onnx=True)


def test_missing_extra_is_one_line_and_exit_2(
    small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    create(SPEC, small_encoder, 10, seed=0).save(tmp_path / "run" / "stage-3" / "model")
    (tmp_path / "run" / "stage-3" / "run.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(onnx_model, "_PACKAGES", ("numpy", "a_package_that_nobody_has"))
    command = command_of(app, "jasper-student", monkeypatch, capsys)
    ran = command("export", tmp_path / "run", tmp_path / "out", "--onnx")
    assert ran.code == 2
    (line,) = ran.err.strip().splitlines()
    assert "--onnx needs a_package_that_nobody_has, which is not installed" in line
    assert "pip install 'jasper-distill[onnx]'" in line
    assert not (tmp_path / "out").exists()
