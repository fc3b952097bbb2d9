from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vision import WIDTHS, picture, write_jasper, write_siglip

from data.images import ImageError
from student import Embedder, load
from student.encoding import encode, encode_images
from student.jasper import load_image_side
from student.model import Student, create
from student.run import last_stage
from student.spec import StudentError, StudentSpec, VisionSpec
from student.stages import StageError

TEXTS = ["the river in the morning", "a", "seven clocks " * 40, "Music, again!"]


@pytest.fixture(scope="module")
def student(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A student of texts and images with a prompt."""
    spec = StudentSpec(
        init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24, prompt="of the house "
    )
    student = create(spec, small_encoder, target_width=10, seed=0)
    siglip = write_siglip(tmp_path_factory.mktemp("vision") / "siglip")
    student.add_vision(load_image_side(siglip, student.hidden, VisionSpec(image_tokens=5)))
    return student


@pytest.fixture(scope="module")
def run(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a third stage, in which FC1 and FC2 were trained."""
    run = tmp_path_factory.mktemp("run")
    student.save(run / "stage-3" / "model")
    (run / "stage-3" / "run.json").write_text(json.dumps({"trained_heads": ["fc1", "fc2"]}))
    return run


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return load(run)


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.sqrt((vectors**2).sum(1, keepdims=True))


@pytest.mark.parametrize("head", ["fc1", "fc2", "fc1[:4]", "pooled"])
def test_vectors_are_the_students_own_in_the_order_of_the_texts(
    embedder: Embedder, student: Student, head: str
) -> None:
    expected = encode(student, TEXTS, [head])[head]
    assert np.abs(embedder.encode(TEXTS, head=head) - unit(expected)).max() < 1e-6
    raw = embedder.encode(TEXTS, head=head, normalize=False, batch_size=2)
    assert np.abs(raw - expected).max() < 1e-6
    assert raw.dtype == np.float32
    assert raw.shape[1] == embedder.width(head)


def test_many_texts_come_back_in_their_order(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.embedder.SORTED_TOGETHER", 7)
    texts = [TEXTS[i % 4] for i in range(30)]
    told: list[int] = []
    found = embedder.encode(texts, batch_size=3, advance=told.append)
    assert np.abs(found - embedder.encode(TEXTS)[np.arange(30) % 4]).max() < 1e-6
    assert sum(told) == 30


def test_a_run_a_stage_and_its_model_are_the_same_student(run: Path, embedder: Embedder) -> None:
    expected = embedder.encode(TEXTS)
    for path in (str(run), run / "stage-3", run / "stage-3" / "model"):
        found = load(path, device="cpu")
        assert found.heads == {"fc1": 10, "fc2": 6}
        assert np.array_equal(found.encode(TEXTS), expected)
    assert embedder.max_tokens == 24


def test_a_copy_of_a_stage_beside_the_stages_is_none_of_them(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "stage-3", copy / "stage-3-before")
    assert last_stage(copy) == copy / "stage-3"


@pytest.mark.parametrize("record", ["[]", "{}", '{"trained_heads": 3}', "{"])
def test_a_broken_record_is_refused(run: Path, tmp_path: Path, record: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "stage-3" / "run.json").write_text(record)
    with pytest.raises(StudentError, match=r"run\.json (is no record of a stage|cannot be read)"):
        load(copy)


def test_a_model_without_its_run_gives_all_its_heads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "stage-3" / "model", tmp_path / "moved")
    assert load(tmp_path / "moved").heads == {"fc1": 10, "fc2": 6, "fc3": 4}


def test_it_says_what_it_gives(embedder: Embedder) -> None:
    says = "Embedder(fc1 10, fc2 6 wide; texts and images of at most 24 tokens)"
    assert repr(embedder) == says


def test_no_text_gives_no_row(embedder: Embedder) -> None:
    assert embedder.encode([], head="fc2").shape == (0, 6)
    assert embedder.encode([], head="pooled").shape == (0, 32)
    assert embedder.encode([], head=6).shape == (0, 6)
    assert embedder.encode_images([]).shape == (0, 10)


def test_a_text_alone_is_refused(embedder: Embedder) -> None:
    with pytest.raises(TypeError, match=r"for one text: encode\(\[text\]\)\[0\]"):
        embedder.encode("a text")
    with pytest.raises(TypeError, match="text 1 is no str, but int"):
        embedder.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="takes a list of images"):
        embedder.encode_images(Path("picture.png"))  # type: ignore[arg-type]


def test_another_prompt_stands_in_for_the_students_own(
    embedder: Embedder, student: Student
) -> None:
    assert embedder.prompt == "of the house "
    texts = ["in the morning"]
    own = embedder.encode(texts)
    assert np.array_equal(embedder.encode(["of the house in the morning"], prompt=""), own)
    assert np.abs(embedder.encode(texts, prompt="") - own).max() > 1e-2
    assert np.array_equal(embedder.encode(texts), own)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("fc3", "the run has not trained 'fc3'; it can give fc1, fc2, pooled"),
        ("fc9", "the run has no head 'fc9'"),
        ("1024", "no trained head is 1024 wide"),
        ("fc1[:10]", r"fc1\[:10\] is no part of fc1"),
    ],
)
def test_a_head_that_is_not_there_is_refused(embedder: Embedder, head: str, message: str) -> None:
    for call in (embedder.encode, embedder.encode_images):
        with pytest.raises((StudentError, StageError), match=message):
            call([], head=head)


def test_threads_share_one(embedder: Embedder) -> None:
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    expected = [embedder.encode(texts[i::4], head="fc2") for i in range(4)]
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = embedder.encode(texts[i::4], head="fc2", batch_size=3 + i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, vectors in enumerate(expected):
        assert np.abs(found[i] - vectors).max() < 1e-6


def test_images_are_files_bytes_or_pillows(
    embedder: Embedder, student: Student, tmp_path: Path
) -> None:
    data = [picture(seed) for seed in range(3)]
    (tmp_path / "one.png").write_bytes(data[1])
    with Image.open(tmp_path / "one.png") as opened:
        found = embedder.encode_images(
            [data[0], tmp_path / "one.png", str(tmp_path / "one.png"), opened, data[2]],
            head="fc2",
            batch_size=2,
        )
    assert student.vision is not None
    pixels = [torch.from_numpy(student.vision.preprocessing.pixels(image)) for image in data]
    expected = unit(encode_images(student, pixels, ["fc2"])["fc2"])
    assert np.abs(found - expected[[0, 1, 1, 1, 2]]).max() < 1e-6


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"not an image", "image 1: no image: 12 bytes"),
        (Path("nowhere.png"), "nowhere.png: No such file"),
        (picture(0)[:90], "image 1: damaged"),
    ],
)
def test_a_broken_image_is_named(embedder: Embedder, image: Path | bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        embedder.encode_images([picture(0), image])


def test_a_student_of_texts_refuses_images(small_encoder: Path, tmp_path: Path) -> None:
    create(StudentSpec(init="-", max_tokens=24), small_encoder, 10, seed=0).save(tmp_path / "model")
    with pytest.raises(StudentError, match="reads texts alone"):
        load(tmp_path / "model").encode_images([picture(0)])


def test_the_released_layout_loads_as_it_is(tmp_path: Path) -> None:
    folder = write_jasper(tmp_path / "released", bf16=False)
    state = torch.get_rng_state()
    embedder = load(folder)
    assert torch.equal(state, torch.get_rng_state())
    assert embedder.heads == {f"fc{n}": width for n, width in enumerate(WIDTHS, 1)}
    assert embedder.max_tokens == 512
    spec = StudentSpec(init="-", reduced_heads={"fc2": WIDTHS[1]})
    student = create(spec, folder, WIDTHS[0], seed=3)
    expected = unit(encode(student, TEXTS, ["fc2"])["fc2"])
    assert np.abs(embedder.encode(TEXTS, head=str(WIDTHS[1])) - expected).max() < 1e-6
    assert embedder.encode_images([picture(0)]).shape == (1, WIDTHS[0])


@pytest.mark.parametrize(
    "damaged", ["heads.safetensors", "text/model.safetensors", "text/tokenizer.json"]
)
def test_damaged_files_are_refused(run: Path, tmp_path: Path, damaged: str) -> None:
    model = shutil.copytree(run / "stage-3" / "model", tmp_path / "model")
    data = (model / damaged).read_bytes()
    (model / damaged).write_bytes(data[: len(data) // 2])
    with pytest.raises(StudentError, match=r"is damaged|holds no text|cannot be read"):
        load(model)


@pytest.mark.parametrize("left", ['{"head_widths": {"fc1": 10}}', '{"head_widths": {}, "spec": 3}'])
def test_a_damaged_description_is_refused(run: Path, tmp_path: Path, left: str) -> None:
    model = shutil.copytree(run / "stage-3" / "model", tmp_path / "model")
    (model / "student.json").write_text(left)
    with pytest.raises(StudentError, match=r"student\.json is damaged"):
        load(model)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "there is no .*nowhere: expected a run"),
        ("empty", "holds no finished stage"),
        ("bert", "holds a model, but neither a student"),
        ("broken", r"student.json cannot be read \(JSONDecodeError\)"),
    ],
)
def test_what_is_no_student_is_refused(
    small_encoder: Path, tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "student.json").write_text("{")
    shutil.copytree(small_encoder, tmp_path / "bert")
    with pytest.raises(StudentError, match=message):
        load(tmp_path / path)
