from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_pairs import pairs, write_folder
from small_vision import write_siglip

from data.pairs import Pairs
from data.pairs_spec import PairsSpec
from student.evaluation import images
from student.evaluation.images import measure, recall
from student.jasper import load_image_side
from student.model import create
from student.spec import StudentSpec, VisionSpec


def by_hand(queries: np.ndarray, documents: np.ndarray, groups: list[int], at: int) -> float:
    found = 0
    for i, query in enumerate(queries.astype(float)):
        scores = [
            float(query @ d / np.linalg.norm(query) / np.linalg.norm(d))
            for d in documents.astype(float)
        ]
        order = sorted(range(len(scores)), key=lambda j: (-scores[j], groups[j] == groups[i]))
        found += any(groups[j] == groups[i] for j in order[:at])
    return found / len(queries)


def test_recall_is_the_share_that_finds_its_own() -> None:
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(40, 6)).astype(np.float32)
    queries = documents + rng.normal(size=(40, 6)).astype(np.float32)
    groups = [i % 30 for i in range(40)]
    found = recall(queries, documents, np.array(groups), np.array(groups))
    assert found == [pytest.approx(by_hand(queries, documents, groups, at)) for at in (1, 5, 10)]
    assert 0 < found[0] < found[2] < 1


def test_equal_vectors_find_nothing_by_luck() -> None:
    same = np.ones((12, 3), np.float32)
    each, one = np.arange(12), np.zeros(12, np.int64)
    assert recall(same, same, each, each) == [0, 0, 0]
    assert recall(same, same, one, one) == [1, 1, 1]


def test_images_of_one_caption_are_all_right() -> None:
    images = np.array([[1, 0.1], [1, 0.2], [0.1, 1]], np.float32)
    texts = np.eye(2, dtype=np.float32)
    of_images, of_texts = np.array([0, 0, 1]), np.array([0, 1])
    assert recall(images, texts, of_images, of_texts)[0] == 1
    assert recall(texts, images, of_texts, of_images)[0] == 1
    assert recall(texts[::-1], images, of_texts, of_images)[0] == 0


def test_images_are_decoded_a_batch_at_a_time(
    small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pairs(30)
    content[3] = (b"no image", "a broken one")
    write_folder(tmp_path / "pairs", content)
    write_siglip(tmp_path / "siglip")
    given = Pairs(PairsSpec(path=str(tmp_path / "pairs"), held_out=0.5))
    student = create(StudentSpec(init="-", reduced_heads={}, max_tokens=24), small_encoder, 8, 0)
    vision = VisionSpec(image_tokens=5)
    student.add_vision(load_image_side(tmp_path / "siglip", student.hidden, vision))
    rows = np.arange(30)
    whole = measure(student, given, rows, ["fc1"])
    assert (whole["pairs"], whole["passed_over"]) == (29, 1)

    read, waiting = given.source.read, [0]

    def reading(row: int) -> bytes:
        waiting.append(waiting[-1] + 1)
        return read(row)

    monkeypatch.setattr(images, "ENCODE_BATCH", 4)
    monkeypatch.setattr(given.source, "read", reading)
    done = measure(student, given, rows, ["fc1"], advance=lambda _: waiting.append(0))
    assert max(waiting) == 4
    assert done == whole
