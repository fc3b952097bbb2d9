from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import edit_json, read_weights, write_stella
from PIL import Image
from references import Array, decoder
from safetensors.torch import load_file, save_file
from small_models import write_encoder
from small_vision import (
    IMAGE_TOKENS,
    PREPROCESSOR,
    SIDE,
    SIGLIP,
    TOKENS,
    WIDTHS,
    encoded,
    picture,
    siglip_weights,
    write_jasper,
    write_siglip,
)
from vision_reference import image_tokens

from data.images import ImageError, Preprocessing
from student.encoding import encode
from student.jasper import load_image_side, write
from student.model import POOLED, Student, create, load
from student.spec import StudentError, StudentSpec, VisionSpec

TEXTS = ["the quiet engine", "which bridges did she cross, and how often?", "river"]
SPEC = StudentSpec(
    init="-",
    reduced_heads={"fc2": WIDTHS[1], "fc3": WIDTHS[2], "fc4": WIDTHS[3]},
    max_tokens=32,
    vision=VisionSpec(image_tokens=IMAGE_TOKENS),
)
HEADS = ("fc1", "fc2", "fc3", "fc4")


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(Preprocessing(SIDE).pixels(picture(seed)))


def student_of(text: Path, seen: Path, spec: StudentSpec = SPEC, width: int = WIDTHS[0]) -> Student:
    student = create(spec, text, width, seed=0)
    assert spec.vision is not None
    student.add_vision(load_image_side(seen, student.hidden, spec.vision))
    return student.eval()


@pytest.fixture(scope="module")
def jasper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jasper(tmp_path_factory.mktemp("jasper") / "released")


@pytest.fixture(scope="module")
def released(jasper: Path) -> Student:
    return student_of(jasper, jasper)


def as_read(folder: Path) -> dict[str, np.ndarray]:
    return {n: t.float().numpy() for n, t in load_file(folder / "model.safetensors").items()}


def expected_state(folder: Path, row: list[int], seen: Array | None) -> Array:
    """The pooled state of a row; `seen` are the tokens of its image, where it has one."""
    weights = as_read(folder)
    table = weights["model.embed_tokens.weight"]
    if seen is not None:
        # Image tokens are rows of a longer table, which no text reaches.
        first = len(table)
        weights["model.embed_tokens.weight"] = np.concatenate([table, seen])  # type: ignore[assignment]
        image = json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-2]["id"]
        places = [i for i, token in enumerate(row) if token == image]
        row = [first + places.index(i) if i in places else t for i, t in enumerate(row)]
    states = decoder(weights, "model.", row, heads=6, kv_heads=2, theta=1e6, epsilon=1e-6)
    mean: Array = states.mean(0)
    return mean


def test_texts_and_images_in_one_batch_are_what_the_facts_say(
    jasper: Path, released: Student
) -> None:
    items = [TEXTS[0], pixels(1), TEXTS[1], pixels(2), TEXTS[2]]
    with torch.no_grad():
        found = released(released.batch(items, chunks=3), (POOLED, *HEADS))
    weights = as_read(jasper)
    side = {n.removeprefix("vision_model.vision_model."): v for n, v in weights.items()}
    first = len(json.loads((jasper / "tokenizer.json").read_text())["model"]["vocab"])
    eos, *_, start, image, end = range(first, first + 6)
    for place, item in enumerate(items):
        if isinstance(item, str):
            row, seen = released.tokenizer.tokenizer.encode(item).ids, None
            assert row[-1] == eos
        else:
            row = [start, *[image] * IMAGE_TOKENS, end, eos]
            seen = image_tokens(side, item.numpy(), heads=4, tokens=IMAGE_TOKENS, hidden=48)
        state = expected_state(jasper, row, seen)
        assert np.abs(found[POOLED][place].numpy() - state).max() < 1e-4
        for head, width in zip(HEADS, WIDTHS, strict=True):
            name = f"vector_linear_{width}"
            vector = weights[f"{name}.weight"] @ state + weights[f"{name}.bias"]
            assert np.abs(found[head][place].numpy() - vector).max() < 1e-4


def test_an_image_does_not_depend_on_its_batch(released: Student) -> None:
    with torch.no_grad():
        alone = released.pooled(released.batch([pixels(1)]))
        among = released.pooled(released.batch([TEXTS[1] * 3, pixels(2), pixels(1)], chunks=1))
    assert (alone[0] - among[2]).abs().max() < 1e-5
    assert (among[1] - among[2]).abs().max() > 1e-2


def test_image_tokens_written_in_a_text_are_a_text(released: Student) -> None:
    items = [TOKENS[1] * 3 + " a text", pixels(1)]
    with torch.no_grad():
        mixed = released.pooled(released.batch(items, chunks=1))
        apart = [released.pooled(released.batch([item]))[0] for item in items]
    assert (mixed - torch.stack(apart)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip_through_the_released_layout_is_bit_for_bit(
    jasper: Path, released: Student, tmp_path: Path, dtype: torch.dtype
) -> None:
    write(released, tmp_path / "out", HEADS, dtype)
    again = student_of(tmp_path / "out", tmp_path / "out")
    items = [*TEXTS, pixels(1), pixels(2)]
    with torch.no_grad():
        before = released(released.batch(items), HEADS)
        after = again(again.batch(items), HEADS)
    for head in HEADS:
        assert torch.equal(before[head], after[head])
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(as_read(jasper))
    kept = ("num_img_tokens", "architectures", "hidden_size", "vocab_size")
    old, new = (json.loads((f / "config.json").read_text()) for f in (jasper, tmp_path / "out"))
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert new["vector_dim"] == WIDTHS[0]  # the release's 1024 is not among them
    assert new["vision_config"]["hidden_size"] == SIGLIP["hidden_size"]
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["size"] == {
        "height": SIDE, "width": SIDE,
    }  # fmt: skip


def test_a_saved_student_keeps_its_image_side(released: Student, tmp_path: Path) -> None:
    released.save(tmp_path / "model")
    again = load(tmp_path / "model").eval()
    with torch.no_grad():
        items = [TEXTS[0], pixels(3)]
        assert torch.equal(released.pooled(released.batch(items)), again.pooled(again.batch(items)))
    assert again.spec == SPEC


def test_groups_of_the_image_side(released: Student) -> None:
    """SigLIP's own pooling head is never run: a group that had it could not train under DDP."""
    names = set(released.parameters_of(["vision"]))
    every = {name for name, _ in released.named_parameters() if name.startswith("vision.")}
    unused = {name for name in every if name.startswith("vision.encoder.head.")}
    assert names == every - unused
    assert unused
    assert not names & set(released.parameters_of(["text", "heads"]))


@pytest.mark.parametrize(
    ("prefix", "head", "whole"),
    [
        ("", True, False),
        ("vision_model.", False, False),
        ("vision_model.vision_model.", True, True),
    ],
)
def test_a_stella_and_a_siglip_make_a_student(
    tmp_path: Path, prefix: str, head: bool, whole: bool
) -> None:
    """New tokens change nothing for texts; every spelling of a vision model's keys is read."""
    stella = write_stella(tmp_path / "stella")
    seen = write_siglip(tmp_path / "siglip", prefix=prefix, head=head, whole=whole)
    student = student_of(stella, seen)
    plain = create(SPEC, stella, WIDTHS[0], seed=0)
    assert np.array_equal(encode(student, TEXTS, HEADS)["fc1"], encode(plain, TEXTS, HEADS)["fc1"])
    table = read_weights(stella)["model.embed_tokens.weight"]
    size = len(table)
    assert [student.tokenizer.tokenizer.token_to_id(t) for t in TOKENS] == list(
        range(size, size + 3)
    )
    embeddings = student.text.get_input_embeddings().weight.detach().numpy()  # type: ignore[operator]
    assert np.array_equal(embeddings[:size], table)
    assert np.allclose(embeddings[size:], table.mean(0), atol=1e-6)
    weights = siglip_weights(np.random.default_rng(5))
    expected = image_tokens(weights, pixels(1).numpy(), heads=4, tokens=IMAGE_TOKENS, hidden=48)
    assert student.vision is not None
    with torch.no_grad():
        found = student.vision(pixels(1)[None])[0].numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_images_are_prepared_as_the_library_prepares_them() -> None:
    from transformers import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(**{**PREPROCESSOR, "size": {"height": 12, "width": 12}})
    for size in ((31, 57), (5, 7)):
        image = Image.radial_gradient("L").resize(size).convert("RGB")
        image.putpixel((2, 3), (255, 0, 0))
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        found = Preprocessing(SIDE).pixels(encoded(image)).astype(np.float32)
        assert np.abs((found / 255 - 0.5) / 0.5 - expected).max() < 1e-6


def test_a_projection_begins_as_the_identity_and_travels(tmp_path: Path) -> None:
    stella, seen = write_stella(tmp_path / "stella"), write_siglip(tmp_path / "siglip")
    spec = SPEC.model_copy(update={"vision": VisionSpec(image_tokens=5, projection=True)})
    student, plain = student_of(stella, seen, spec), student_of(stella, seen)
    with torch.no_grad():
        assert torch.allclose(
            student.pooled(student.batch([pixels(1)])), plain.pooled(plain.batch([pixels(1)]))
        )
        for parameter in student.parameters_of(["pooler"]).values():
            parameter.add_(0.1)
    student.save(tmp_path / "model")
    again = load(tmp_path / "model")
    with torch.no_grad():
        batch = student.batch([pixels(1)])
        assert torch.equal(student.pooled(batch), again.pooled(batch))
    with pytest.raises(StudentError, match="no place for a projection"):
        write(student, tmp_path / "out", HEADS, torch.float32)
    assert not (tmp_path / "out").exists()


def damage(folder: Path, kind: str) -> None:
    if kind == "architecture":
        edit_json(folder / "config.json", model_type="clip_vision_model")
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "a tensor less":
        path = folder / "model.safetensors"
        save_file({n: t for n, t in load_file(path).items() if "fc1.bias" not in n}, path)
    elif kind == "another size":
        edit_json(folder / "config.json", intermediate_size=30)
    elif kind == "torn":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif kind == "a crop":
        edit_json(folder / "preprocessor_config.json", do_center_crop=True)
    elif kind == "one side":
        edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 12})
    elif kind == "another side":
        edit_json(folder / "preprocessor_config.json", size={"height": 24, "width": 24})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("architecture", "holds a model of type 'clip_vision_model'; the image side is a SigLIP"),
        ("no config", "holds no vision model"),
        ("a tensor less", "lack 2 tensors of the vision model, the first is encoder.layers.0.mlp"),
        ("another size", "has the shape"),
        ("torn", "is damaged"),
        ("a crop", "a crop"),
        ("one side", "size with height and width"),
        ("another side", "reads images of 12 pixels a side"),
    ],
)
def test_a_vision_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, kind: str, message: str
) -> None:
    folder = write_siglip(tmp_path / "siglip")
    damage(folder, kind)
    with pytest.raises((StudentError, ImageError), match=message):
        load_image_side(folder, 48, VisionSpec(image_tokens=5))


def test_what_the_tokenizer_lacks_or_has_no_room_for_is_said(tmp_path: Path) -> None:
    folder = write_jasper(tmp_path / "jasper", tokens=False)
    student = create(SPEC, folder, WIDTHS[0], seed=0)
    with pytest.raises(StudentError, match="reads texts alone"):
        student.batch([pixels(1)])
    assert SPEC.vision is not None
    student.vision = load_image_side(folder, 48, SPEC.vision)
    with pytest.raises(StudentError, match=r"lacks the image tokens <\|jasper_img_start\|>"):
        student.batch([pixels(1)])
    with pytest.raises(StudentError, match="an image takes 40 tokens"):
        student.add_vision(load_image_side(folder, 48, VisionSpec(image_tokens=40)))


def test_the_layout_is_written_only_of_what_it_can_hold(tmp_path: Path) -> None:
    bert = student_of(write_encoder(tmp_path / "bert"), write_siglip(tmp_path / "siglip"))
    with pytest.raises(StudentError, match="the layout's body is a Qwen2, found BertModel"):
        write(bert, tmp_path / "out", HEADS, torch.float32)
    stella = create(SPEC, write_stella(tmp_path / "stella"), WIDTHS[0], seed=0)
    with pytest.raises(StudentError, match="the student has none; train stage 4"):
        write(stella, tmp_path / "out", HEADS, torch.float32)
    assert not (tmp_path / "out").exists()
