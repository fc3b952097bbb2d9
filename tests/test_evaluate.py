from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import write_cache

from student.encoding import encode
from student.evaluation.held_out import evaluate
from student.evaluation.retention import nearest, retention
from student.model import create
from student.spec import StudentSpec
from teacher_cache.reader import CacheReader

SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6}, max_tokens=24)
RNG = np.random.default_rng(0)


def vectors(rows: int, width: int) -> np.ndarray:
    return RNG.standard_normal((rows, width)).astype(np.float32)


def cosines(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x / np.sqrt((x**2).sum(1, keepdims=True))
    return x @ x.T


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of ranks, for values without ties."""
    a, b = (np.argsort(np.argsort(v)).astype(float) for v in (x, y))
    return float(np.corrcoef(a, b)[0, 1])


def test_figures_equal_their_definitions() -> None:
    teacher = vectors(40, 7)
    student = teacher + 0.7 * vectors(40, 7)
    found = retention(student, teacher, same_space=True)
    s, t = cosines(student), cosines(teacher)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    unit_s = student / np.linalg.norm(student, axis=1, keepdims=True)
    unit_t = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    assert found.cosine == pytest.approx(float((unit_s * unit_t).sum(1).mean()), abs=1e-5)
    assert found.order == pytest.approx(
        spearman(np.array([s[p] for p in pairs]), np.array([t[p] for p in pairs])), abs=1e-5
    )
    kept = 0
    for i in range(40):
        others = [j for j in range(40) if j != i]
        mine = set(sorted(others, key=lambda j: -s[i, j])[:10])
        theirs = set(sorted(others, key=lambda j: -t[i, j])[:10])
        kept += len(mine & theirs)
    assert found.neighbours == pytest.approx(kept / 400, abs=1e-9)


def test_a_rotated_and_scaled_copy_keeps_everything_but_the_cosine() -> None:
    teacher = vectors(30, 6)
    rotation, _ = np.linalg.qr(vectors(6, 6))
    found = retention(3 * teacher @ rotation, teacher, same_space=False)
    assert found.cosine is None
    assert found.order == pytest.approx(1, abs=1e-4)
    assert found.neighbours == 1


def test_neighbours_leave_the_row_itself_out_even_among_duplicates() -> None:
    rows = vectors(12, 5)
    rows[3] = rows[7] = rows[9]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = nearest(rows, 4)
    assert found.shape == (12, 4)
    assert all(i not in found[i] for i in range(12))
    assert {*found[3][:2]} == {7, 9}


def test_unequal_or_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="as many rows"):
        retention(vectors(5, 3), vectors(6, 3), same_space=True)
    with pytest.raises(ValueError, match="at least 3"):
        retention(vectors(2, 3), vectors(2, 3), same_space=True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache")))


def test_encoding_gives_vectors_in_the_order_of_the_texts(small_encoder: Path) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    texts = ["the river", "a", "seven clocks in the morning", "music after the winter"] * 20
    advanced = 0

    def advance(count: int) -> None:
        nonlocal advanced
        advanced += count

    found = encode(student, texts, ["fc2"], advance=advance)
    alone = encode(student, texts[2:3], ["fc2"])
    assert np.allclose(found["fc2"][2::4], alone["fc2"], atol=1e-5)
    assert found["pooled"].shape == (80, 32)
    assert advanced == 80


def test_evaluation_has_a_line_for_every_vector_and_teacher(
    small_encoder: Path, reader: CacheReader
) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    result = evaluate(student, student, reader, reader.teachers, heads=["fc1", "fc2"])
    assert result["rows"] == len(reader.held_out_rows)
    assert set(result["retention"]) == {"init", "pooled", "fc1", "fc2"}
    for name, figures in result["retention"].items():
        assert set(figures) == {"all teachers", "left", "right"}
        assert all((f["cosine"] is not None) == (name == "fc1") for f in figures.values())
    assert result["retention"]["init"] == result["retention"]["pooled"]


def test_fc1_stands_before_each_teacher_with_that_teachers_slice(
    small_encoder: Path, reader: CacheReader
) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    result = evaluate(student, student, reader, reader.teachers, heads=["fc1", "fc2"])
    rows = reader.held_out_rows
    mine = encode(student, reader.texts(rows), ["fc1"])["fc1"][:, 12:]
    right = reader.vectors(rows, ["right"]).astype(np.float32)
    mine = mine / np.linalg.norm(mine, axis=1, keepdims=True)
    expected = float((mine * right).sum(1).mean())
    assert result["retention"]["fc1"]["right"]["cosine"] == pytest.approx(expected, abs=1e-5)
