from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_caches import write_cache

from student.encoding import encode
from student.evaluation.heads import asked, to_measure
from student.evaluation.held_out import evaluate
from student.evaluation.retention import Geometry, Retention, compare, nearest, pair_order
from student.model import create
from student.spec import StudentError, StudentSpec
from teacher_cache.reader import CacheReader

SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6}, max_tokens=24)
RNG = np.random.default_rng(0)


def vectors(rows: int, width: int) -> np.ndarray:
    return RNG.standard_normal((rows, width)).astype(np.float32)


def retention(student: np.ndarray, teacher: np.ndarray, *, same_space: bool) -> Retention:
    return compare(Geometry.of(student), Geometry.of(teacher), same_space=same_space)


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
    assert found["cosine"] == pytest.approx(float((unit_s * unit_t).sum(1).mean()), abs=1e-5)
    assert found["spearman"] == pytest.approx(
        spearman(np.array([s[p] for p in pairs]), np.array([t[p] for p in pairs])), abs=1e-5
    )
    agreed = [(s[p] < s[q]) == (t[p] < t[q]) for i, p in enumerate(pairs) for q in pairs[:i]]
    assert found["pair_order"] == pytest.approx(np.mean(agreed), abs=0.003)
    assert found["recall@1"] == pytest.approx(kept(s, t, 1), abs=1e-9)
    assert found["recall@10"] == pytest.approx(kept(s, t, 10), abs=1e-9)


def kept(mine: np.ndarray, theirs: np.ndarray, k: int) -> float:
    """Of each row's k best columns in one matrix, the share that are the other's; never its own."""
    found = 0
    for i in range(len(mine)):
        others = [j for j in range(len(mine)) if j != i]
        own, right = (sorted(others, key=lambda j: -m[i, j])[:k] for m in (mine, theirs))
        found += len({*own} & {*right})
    return found / len(mine) / k


def test_pairs_that_tie_on_a_side_have_no_order() -> None:
    student, teacher = np.array([1, 1, 2, 3.0]), np.array([0, 5, 5, 7.0])
    # Of six comparisons two are ties; the others come out alike.
    assert pair_order(student, teacher) == 1
    assert pair_order(-student, teacher) == 0
    assert pair_order(np.ones(4), teacher) == 0.5


def test_vectors_that_are_all_alike_agree_with_nothing() -> None:
    found = retention(np.ones((5, 4), np.float32), vectors(5, 4), same_space=False)
    assert (found["spearman"], found["pair_order"]) == (0, 0.5)


def test_few_rows_have_all_others_as_neighbours() -> None:
    found = retention(vectors(5, 3), vectors(5, 4), same_space=False)
    assert found["recall@10"] == 1


def test_a_rotated_and_scaled_copy_keeps_everything_but_the_cosine() -> None:
    teacher = vectors(30, 6)
    rotation, _ = np.linalg.qr(vectors(6, 6))
    found = retention(3 * teacher @ rotation, teacher, same_space=False)
    assert found["cosine"] is None
    assert found["spearman"] == pytest.approx(1, abs=1e-4)
    assert found["recall@10"] == 1


def test_neighbours_leave_the_row_itself_out_even_among_duplicates() -> None:
    rows = vectors(12, 5)
    rows[3] = rows[7] = rows[9]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = nearest(rows, rows, 4)
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


def test_a_teacher_that_was_left_out_is_measured_against_without_a_cosine(
    small_encoder: Path, reader: CacheReader
) -> None:
    student = create(SPEC, small_encoder, 12, seed=0)
    result = evaluate(student, student, reader, ["left"], heads=["fc1"])
    figures = result["retention"]["fc1"]
    assert {name: f["cosine"] is not None for name, f in figures.items()} == {
        "all teachers": False, "left": True, "right": False,
    }  # fmt: skip
    rows = reader.held_out_rows
    whole = encode(student, reader.texts(rows), ["fc1"])["fc1"]
    expected = retention(whole, reader.vectors(rows, ["right"]), same_space=False)
    assert figures["right"] == expected
    mine = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    cosine = (mine * reader.vectors(rows, ["left"])).sum(1).mean()
    assert figures["left"]["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert set(result["asymmetric"]["fc1"]) == {"left"}


def test_teachers_in_another_order_are_one_target_in_that_order(
    small_encoder: Path, reader: CacheReader
) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    turned = evaluate(student, student, reader, ["right", "left"], heads=["fc1"])
    rows = reader.held_out_rows
    mine = encode(student, reader.texts(rows), ["fc1"])["fc1"]
    target = reader.vectors(rows, ["right", "left"]).astype(np.float32)
    cosines = (mine * target).sum(1) / np.linalg.norm(mine, axis=1)
    found = turned["retention"]["fc1"]["all teachers"]["cosine"]
    assert found == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_a_students_query_is_searched_among_the_teachers_vectors_of_other_rows(
    small_encoder: Path, reader: CacheReader
) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    found = evaluate(student, student, reader, reader.teachers, heads=["fc1", "fc2"])["asymmetric"]
    assert list(found) == ["fc1"]
    rows = reader.held_out_rows
    fc1 = encode(student, reader.texts(rows), ["fc1"])["fc1"].astype(np.float64)
    for teacher, columns in (("all teachers", slice(0, 20)), ("right", slice(12, 20))):
        names = reader.teachers if teacher == "all teachers" else [teacher]
        theirs = reader.vectors(rows, names).astype(np.float64)
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        across = fc1[:, columns] @ theirs.T
        for k in (1, 10):
            expected = kept(across, theirs @ theirs.T, k)
            assert found["fc1"][teacher][f"recall@{k}"] == pytest.approx(expected, abs=1e-9)


def test_heads_stand_beside_prefixes_of_their_width() -> None:
    widths = {"fc1": 20, "fc2": 6, "fc3": 20, "fc4": 6}
    assert to_measure(["fc1", "fc2", "fc1[:3]"], widths) == ["fc1", "fc2", "fc1[:3]", "fc1[:6]"]
    assert to_measure(["fc2"], widths) == ["fc2"]


def test_vectors_are_asked_for_by_head_by_width_or_by_first_columns() -> None:
    widths = {"fc1": 20, "fc2": 6, "fc3": 4}
    assert asked("6, fc1[:5],pooled,fc2", ["fc1", "fc2"], widths) == ["fc2", "fc1[:5]"]
    with pytest.raises(StudentError, match="no trained head is 4 wide"):
        asked("4", ["fc1", "fc2"], widths)
