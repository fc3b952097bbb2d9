"""Stella on small checkpoints of the real layout, against a float64 reference of its own."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import torch
from checkpoints import (
    EOS_STELLA,
    STELLA,
    edit_json,
    read_weights,
    stella_tokenizer,
    write_json,
    write_stella,
    write_weights,
)
from numpy.typing import NDArray
from transformers import Qwen2Config, Qwen2Model

from teacher_cache.encoders import loading
from teacher_cache.encoders.batching import encode_batches
from teacher_cache.encoders.body import empty_body, expected_shapes
from teacher_cache.encoders.layout import Padded
from teacher_cache.encoders.protocol import Encoded, IntArray
from teacher_cache.encoders.stella import StellaEncoder
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve

WIDTH = 40
TEXTS = [
    "hello world",
    "the quiet engine " * 9,
    "",
    "x",
    "Which river, Königsberg? 中文",
    "a b c d e",
]
PROMPT = "Instruct: Retrieve semantically similar text.\nQuery: "


def teacher(folder: Path, **changes: Any) -> Teacher:
    spec = {"name": "stella-en-1.5b-v5", "path": str(folder), "width": WIDTH, "dtype": "float32"}
    return resolve(TeacherSpec.model_validate(spec | changes))


def load(folder: Path, **changes: Any) -> StellaEncoder:
    """Through the path that a build takes."""
    row = teacher(folder, **changes)
    loading.inspect_files(row, folder)
    encoder = loading.load_encoder(row, folder, device="cpu", token_budget=None)
    assert isinstance(encoder, StellaEncoder)
    return encoder


def encode(encoder: StellaEncoder, texts: list[str], prompt: str = "") -> Encoded:
    return encoder.encode(encoder.prepare(texts, [prompt] * len(texts)), lambda _done: None)


def reference(folder: Path, rows: list[IntArray], width: int = WIDTH) -> NDArray[np.float64]:
    weights, dense = read_weights(folder), read_weights(folder / f"2_Dense_{width}")
    return np.stack(
        [references.stella(weights, dense, row.tolist(), heads=6, kv_heads=2) for row in rows]
    )


def agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Within 1e-5 of the largest number: fp32 keeps that, and no other formula does."""
    return bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stella(tmp_path_factory.mktemp("stella"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> StellaEncoder:
    return load(folder)


@pytest.fixture
def own(tmp_path: Path, folder: Path) -> Path:
    """A copy of the folder, to break."""
    return shutil.copytree(folder, tmp_path / "model")


def test_vectors_agree_with_the_float64_reference(folder: Path, encoder: StellaEncoder) -> None:
    found = encode(encoder, TEXTS)
    rows = encoder.prepare(TEXTS, [""] * len(TEXTS)).ids
    assert agree(found.vectors, reference(folder, list(rows)))
    assert found.tokens.tolist() == [len(row) for row in rows]
    assert found.vectors.dtype == np.float32


def test_vectors_are_as_the_dense_layer_gives_them(encoder: StellaEncoder) -> None:
    norms = np.linalg.norm(encode(encoder, TEXTS).vectors, axis=1)
    assert norms.std() > 0.01
    assert norms.min() > 1.5


def test_each_width_has_a_matrix_of_its_own(folder: Path, encoder: StellaEncoder) -> None:
    narrow = load(folder, width=16)
    found = encode(narrow, TEXTS).vectors
    assert agree(found, reference(folder, list(narrow.prepare(TEXTS, [""] * 6).ids), 16))
    assert not np.allclose(found, encode(encoder, TEXTS).vectors[:, :16], atol=0.1)


def test_a_text_has_the_same_vector_alone_and_in_a_batch(encoder: StellaEncoder) -> None:
    together = encode(encoder, TEXTS).vectors
    alone = np.concatenate([encode(encoder, [text]).vectors for text in TEXTS])
    assert agree(together, alone)


def test_padding_may_stand_on_either_side(encoder: StellaEncoder) -> None:
    prepared = encoder.prepare(TEXTS, [""] * len(TEXTS))
    left = encode_batches(
        prepared,
        encoder.forward,
        encoder.width,
        collate=partial(Padded.of, pad_id=3, pad_left=True),
        device=torch.device("cpu"),
        token_budget=4096,
        on_done=lambda _done: None,
    )
    assert agree(left.vectors, encode(encoder, TEXTS).vectors)


def test_a_prompt_is_read_and_pooled_like_text(encoder: StellaEncoder) -> None:
    with_prompt = encode(encoder, ["hello"], PROMPT).vectors
    assert agree(with_prompt, encode(encoder, [PROMPT + "hello"]).vectors)
    assert not agree(with_prompt, encode(encoder, ["hello"]).vectors)


def test_one_prompt_per_text(encoder: StellaEncoder) -> None:
    mixed = encoder.prepare(["hello", "hello"], [PROMPT, ""]).ids
    assert len(mixed[0]) > len(mixed[1])


def test_the_end_of_text_token_stays_where_a_text_is_cut(folder: Path) -> None:
    encoder = load(folder, max_tokens=7)
    rows = encoder.prepare(["the quiet engine of the harbour", "a"], ["", ""]).ids
    eos = stella_tokenizer().token_to_id(EOS_STELLA)
    uncut = load(folder).prepare(["the quiet engine of the harbour"], [""]).ids[0]
    assert [len(row) for row in rows] == [7, 2]
    assert rows[0].tolist() == [*uncut[:6], eos]
    assert rows[1][-1] == eos


@pytest.mark.parametrize(
    ("flag", "appends", "ends"),
    [
        (True, False, 1),
        (True, True, 1),
        (False, True, 1),
        (None, True, 1),
        (False, False, 0),
        (None, False, 0),
    ],
)
def test_texts_end_as_the_folder_says_and_never_twice(
    tmp_path: Path, flag: bool | None, appends: bool, ends: int
) -> None:
    encoder = load(write_stella(tmp_path, add_eos_token=flag, appends_eos=appends), max_tokens=6)
    eos = stella_tokenizer().token_to_id(EOS_STELLA)
    for text in ("hello", "the quiet engine of the harbour"):
        (row,) = encoder.prepare([text], [""]).ids
        assert row.tolist().count(eos) == ends
        assert (row[-1] == eos) == bool(ends)
        assert len(row) <= 6
    assert ("in one" in encoder.pooling) == bool(ends)


def test_an_empty_text_is_its_end_of_text_token(folder: Path, encoder: StellaEncoder) -> None:
    found = encode(encoder, [""])
    eos = np.array([stella_tokenizer().token_to_id(EOS_STELLA)])
    assert found.tokens.tolist() == [1]
    assert agree(found.vectors, reference(folder, [eos]))


def test_a_text_without_any_token_is_refused(tmp_path: Path) -> None:
    encoder = load(write_stella(tmp_path, add_eos_token=False))
    with pytest.raises(TeacherError, match=r"text 1 of 2 \(''\) has no token"):
        encoder.prepare(["hello", ""], ["", ""])


def test_an_end_of_text_token_that_the_vocabulary_lacks_is_refused(own: Path) -> None:
    edit_json(own / "tokenizer_config.json", eos_token={"content": "<eos>"})
    with pytest.raises(TeacherError, match=r"names '<eos>', which is not in tokenizer.json"):
        loading.inspect_files(teacher(own), own)


def test_a_limit_without_room_for_text_is_refused(folder: Path) -> None:
    with pytest.raises(TeacherError, match="max_tokens 1 leaves no room"):
        loading.inspect_files(teacher(folder, max_tokens=1), folder)


def test_without_a_limit_no_text_is_cut(folder: Path) -> None:
    row = replace(teacher(folder), max_tokens=None)
    encoder = loading.load_encoder(row, folder, device="cpu", token_budget=None)
    assert len(encoder.prepare(["the river " * 900], [""]).ids[0]) > 1800


def test_nothing_but_the_named_files_is_read(folder: Path, tmp_path: Path) -> None:
    row = teacher(folder)
    for path in loading.inspect_files(row, folder):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    assert not (tmp_path / "2_Dense").exists()
    assert agree(encode(load(tmp_path), TEXTS).vectors, encode(load(folder), TEXTS).vectors)


def test_shards_are_read_by_their_index(folder: Path, tmp_path: Path) -> None:
    sharded = write_stella(tmp_path, shards=3)
    names = {path.name for path in loading.inspect_files(teacher(sharded), sharded)}
    assert {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)} < names
    assert "model.safetensors.index.json" in names
    assert np.array_equal(encode(load(sharded), TEXTS).vectors, encode(load(folder), TEXTS).vectors)


@pytest.mark.parametrize("width", [8192, None])
def test_a_head_that_is_not_there_names_those_that_are(folder: Path, width: int | None) -> None:
    row = replace(teacher(folder), width=width)
    with pytest.raises(TeacherError, match=rf"no Dense head of width {width}.*can be 16, 40$"):
        loading.inspect_files(row, folder)


def test_a_head_of_another_kind_is_refused(own: Path) -> None:
    edit_json(own / "2_Dense_40/config.json", activation_function="torch.nn.Tanh")
    with pytest.raises(TeacherError, match="no activation"):
        loading.inspect_files(teacher(own), own)


def test_another_architecture_is_refused(own: Path) -> None:
    edit_json(own / "config.json", model_type="bert")
    with pytest.raises(TeacherError, match="model_type 'bert'; Stella's is 'qwen2'"):
        loading.inspect_files(teacher(own), own)


def test_a_configuration_that_describes_no_model_is_refused(own: Path) -> None:
    edit_json(own / "config.json", hidden_size="wide")
    with pytest.raises(TeacherError, match="does not describe a Qwen2Model"):
        loading.inspect_files(teacher(own), own)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": None, "pooling_mode": "lasttoken"},
        {"include_prompt": False},
    ],
)
def test_another_pooling_is_refused(own: Path, pooling: dict[str, Any]) -> None:
    edit_json(own / "1_Pooling/config.json", **pooling)
    with pytest.raises(TeacherError, match="expected mean pooling over all tokens"):
        loading.inspect_files(teacher(own), own)


def test_mean_pooling_may_be_written_by_its_name(own: Path) -> None:
    write_json(own / "1_Pooling/config.json", {"embedding_dimension": 48, "pooling_mode": "mean"})
    assert loading.inspect_files(teacher(own), own)


def test_other_modules_are_refused(own: Path) -> None:
    modules = json.loads((own / "modules.json").read_text())
    write_json(own / "modules.json", modules[:2])
    with pytest.raises(TeacherError, match=r"found \['Transformer', 'Pooling'\]"):
        loading.inspect_files(teacher(own), own)


def test_a_tokenizer_of_another_model_is_refused(own: Path) -> None:
    weights = read_weights(own)
    rows = len(weights["model.embed_tokens.weight"]) - 1
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:rows]
    write_weights(own, weights)
    edit_json(own / "config.json", vocab_size=rows)
    with pytest.raises(TeacherError, match=rf"'<\|im_end\|>' the id {rows}.*not of one model"):
        loading.inspect_files(teacher(own), own)


def test_fp16_is_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(TeacherError, match="overflow in float16"):
        loading.inspect_files(teacher(folder, dtype="float16"), folder)


def test_bf16_holds_the_body_in_bf16_and_the_head_in_fp32(folder: Path) -> None:
    encoder = load(folder, dtype="bfloat16")
    assert {p.dtype for p in encoder.body.parameters()} == {torch.bfloat16}
    assert encoder.dense_TH.dtype == torch.float32
    assert encoder.body.rotary_emb.inv_freq.dtype == torch.float32
    rows = list(encoder.prepare(TEXTS, [""] * len(TEXTS)).ids)
    found, expected = encode(encoder, TEXTS).vectors, reference(folder, rows)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    cosine /= np.linalg.norm(expected, axis=1)
    assert 1e-7 < 1 - cosine.min() < 1e-3


def test_the_row_of_the_table_is_the_published_model() -> None:
    row = resolve(
        TeacherSpec(name="stella-en-1.5b-v5", prompts={"questions": "@s2p_query", "default": ""})
    )
    assert (row.repository, row.width, row.max_tokens, row.dtype) == (
        "NovaSearch/stella_en_1.5B_v5",
        8192,
        512,
        "bfloat16",
    )
    assert row.prompt_for("questions").endswith("passages that answer the query.\nQuery: ")
    assert row.prompt_for("fineweb") == ""


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    full = STELLA | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_646,
    }  # fmt: skip
    body = empty_body(Qwen2Model, Qwen2Config, full, "config.json")
    shapes = expected_shapes(body, "model.")
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_543_268_864
