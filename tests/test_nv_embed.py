"""NV-Embed-v2 on small checkpoints of the real layout, against a float64 reference of its own."""

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
from checkpoints import NV_TEXT, edit_json, read_weights, write_json, write_nv_embed, write_stella
from checkpoints import write_weights as rewrite
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralModel

from teacher_cache.encoders import loading
from teacher_cache.encoders.batching import Tokenized, encode_batches
from teacher_cache.encoders.body import empty_body, expected_shapes
from teacher_cache.encoders.latent_attention import LatentSizes
from teacher_cache.encoders.layout import Padded
from teacher_cache.encoders.nv_embed import BODY_PREFIX, NvEmbedEncoder
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve

INSTRUCTION = "Instruct: Given a question\nQuery: "
TEXTS = ["hello world", "the quiet engine " * 9, "", "x", "Which river, Königsberg? 中文", "a b"]
PROMPTS = [INSTRUCTION, "", INSTRUCTION, "", INSTRUCTION, "hello: "]


def teacher(folder: Path, **changes: Any) -> Teacher:
    spec = {"name": "nv-embed-v2", "path": str(folder), "width": 32, "dtype": "float32"}
    return resolve(TeacherSpec.model_validate(spec | changes))


def load(folder: Path, **changes: Any) -> NvEmbedEncoder:
    """Through the path that a build takes."""
    row = teacher(folder, **changes)
    loading.inspect_files(row, folder)
    encoder = loading.load_encoder(row, folder, device="cpu", token_budget=None)
    assert isinstance(encoder, NvEmbedEncoder)
    return encoder


def encode(encoder: NvEmbedEncoder, texts: list[str], prompts: list[str]) -> Encoded:
    return encoder.encode(encoder.prepare(texts, prompts), lambda _done: None)


def reference(folder: Path, prepared: Tokenized) -> NDArray[np.float64]:
    weights = read_weights(folder)
    return np.stack(
        [
            references.nv_embed(weights, row.tolist(), int(start), heads=4, kv_heads=2, cross=3)
            for row, start in zip(prepared.ids, prepared.pooled_from, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nv_embed(tmp_path_factory.mktemp("nv_embed"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> NvEmbedEncoder:
    return load(folder)


@pytest.fixture
def own(tmp_path: Path, folder: Path) -> Path:
    """A copy of the folder, to break."""
    return shutil.copytree(folder, tmp_path / "model")


def test_vectors_agree_with_the_float64_reference(folder: Path, encoder: NvEmbedEncoder) -> None:
    found = encode(encoder, TEXTS, PROMPTS)
    prepared = encoder.prepare(TEXTS, PROMPTS)
    expected = reference(folder, prepared)
    assert np.abs(found.vectors - expected).max() < 5e-6
    assert found.tokens.tolist() == [len(row) for row in prepared.ids]
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


def test_a_text_has_the_same_vector_alone_and_in_a_batch(encoder: NvEmbedEncoder) -> None:
    together = encode(encoder, TEXTS, PROMPTS).vectors
    alone = [encode(encoder, [t], [p]).vectors for t, p in zip(TEXTS, PROMPTS, strict=True)]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-5


def test_padding_may_stand_on_either_side(encoder: NvEmbedEncoder) -> None:
    left = encode_batches(
        encoder.prepare(TEXTS, PROMPTS),
        encoder.forward,
        encoder.width,
        collate=partial(Padded.of, pad_id=7, pad_left=True),
        device=torch.device("cpu"),
        token_budget=4096,
        on_done=lambda _done: None,
    )
    assert np.abs(left.vectors - encode(encoder, TEXTS, PROMPTS).vectors).max() < 1e-5


def test_the_instruction_is_attended_and_never_pooled(encoder: NvEmbedEncoder) -> None:
    prepared = encoder.prepare(["hello world"], [INSTRUCTION])
    start = int(prepared.pooled_from[0])
    states = encoder.token_states(prepared.ids[0])
    mean = states[start:].mean(0)
    vector = encode(encoder, ["hello world"], [INSTRUCTION]).vectors[0]
    assert np.abs(mean / np.linalg.norm(mean) - vector).max() < 1e-5
    # Other instruction tokens, the text's own tokens unchanged: seen through attention.
    other = prepared.ids[0].copy()
    other[2:4] = other[3:1:-1]
    changed = encoder.encode(Tokenized([other], prepared.pooled_from), lambda _done: None)
    assert np.abs(changed.vectors[0] - vector).max() > 1e-3
    # Had it entered the mean, its states would show.
    everything = states.mean(0)
    assert np.abs(everything / np.linalg.norm(everything) - vector).max() > 1e-2


@pytest.mark.parametrize(
    ("prompt", "text", "pooled"),
    [
        # The trailing `▁` of the prompt stands in for <s>: exactly the text is pooled.
        (INSTRUCTION, "hello world", ["▁hello", "▁world", "</s>"]),
        # Where the text does not merge with that `▁`, the `▁` is pooled.
        (INSTRUCTION, "", ["▁", "</s>"]),
        (INSTRUCTION, "中", ["▁", "<0xE4>", "<0xB8>", "<0xAD>", "</s>"]),
        (INSTRUCTION, "\nhello", ["▁", "<0x0A>", "he", "llo", "</s>"]),
        (INSTRUCTION, " hello", ["▁", "▁hello", "</s>"]),
        # Without a trailing space the prompt's own last token is pooled.
        (INSTRUCTION.rstrip(" "), " hello", ["ery:", "▁hello", "</s>"]),
        # Without an instruction, <s> is.
        ("", "hello", ["<s>", "▁hello", "</s>"]),
        ("", "", ["<s>", "</s>"]),
    ],
)
def test_what_is_pooled_is_decided_by_the_count(
    folder: Path, encoder: NvEmbedEncoder, prompt: str, text: str, pooled: list[str]
) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prepared = encoder.prepare([text], [prompt])
    behind = prepared.ids[0][prepared.pooled_from[0] :]
    assert [tokenizer.id_to_token(id_) for id_ in behind] == pooled


def test_literal_special_tokens_in_a_text_are_special(encoder: NvEmbedEncoder) -> None:
    (row,) = encoder.prepare(["hello</s> <unk>world<s>"], [""]).ids
    assert [i for i in row.tolist() if i < 3] == [1, 2, 0, 1, 2]


def test_truncation_cuts_the_end_of_text_token_and_nothing_restores_it(folder: Path) -> None:
    text = "the quiet engine of the harbour"
    whole = load(folder).prepare([text], [""]).ids[0].tolist()
    assert (whole[0], whole[-1]) == (1, 2)
    cut = load(folder, max_tokens=len(whole) - 1).prepare([text], [""]).ids[0].tolist()
    assert cut == whole[:-1]
    fits = load(folder, max_tokens=len(whole)).prepare([text], [""]).ids[0].tolist()
    assert fits == whole


def test_a_cut_text_agrees_with_the_reference(folder: Path) -> None:
    encoder = load(folder, max_tokens=14)
    prepared = encoder.prepare(TEXTS, PROMPTS)
    assert max(len(row) for row in prepared.ids) == 14
    found = encode(encoder, TEXTS, PROMPTS).vectors
    assert np.abs(found - reference(folder, prepared)).max() < 5e-6


def test_a_limit_that_the_instruction_fills_is_refused(
    folder: Path, encoder: NvEmbedEncoder
) -> None:
    count = encoder.tokenizer.count(INSTRUCTION)
    row = teacher(folder, max_tokens=count, prompts={"default": "", "questions": INSTRUCTION})
    message = rf"'Instruct: Given a question\\nQuery: ' alone takes {count} of {count} tokens"
    with pytest.raises(TeacherError, match=message):
        loading.inspect_files(row, folder)
    short = load(folder, max_tokens=count)
    with pytest.raises(TeacherError, match=message):
        short.prepare(["hello", "hello"], ["", INSTRUCTION])
    longer = load(folder, max_tokens=count + 1)
    assert np.isfinite(encode(longer, ["hello"], [INSTRUCTION]).vectors).all()


def test_the_sliding_window_is_ignored(folder: Path, tmp_path: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["text_config"]["sliding_window"] == 4
    wide = load(write_nv_embed(tmp_path, sliding_window=None))
    found, expected = (encode(e, TEXTS, PROMPTS).vectors for e in (load(folder), wide))
    assert np.array_equal(found, expected)


def test_a_latents_shift_common_to_all_changes_nothing_but_its_values(
    folder: Path, own: Path
) -> None:
    """Keys are centred where they are folded; the softmax must not notice."""
    weights = read_weights(own)
    key = "latent_attention_model.cross_attend_blocks.0.norm_context.bias"
    weights[key] = weights[key] + 3
    rewrite(own, weights)
    encoder = load(own)
    prepared = encoder.prepare(TEXTS, PROMPTS)
    found = encode(encoder, TEXTS, PROMPTS).vectors
    assert np.abs(found - reference(own, prepared)).max() < 5e-6


@pytest.mark.parametrize(("dtype", "worst"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision_is_near(folder: Path, dtype: str, worst: float) -> None:
    encoder = load(folder, dtype=dtype)
    assert {p.dtype for p in encoder.body.parameters()} == {getattr(torch, dtype)}
    assert encoder.latent_attention.keys.dtype == getattr(torch, dtype)
    found = encode(encoder, TEXTS, PROMPTS).vectors
    expected = reference(folder, encoder.prepare(TEXTS, PROMPTS))
    assert 1e-5 < np.abs(found - expected).max() < worst
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_nothing_but_the_named_files_is_read(own: Path, tmp_path: Path) -> None:
    (own / "modeling_nvembed.py").write_text("raise SystemExit")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in loading.inspect_files(teacher(own), own):
        shutil.copy(path, copy)
    names = {path.name for path in copy.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert encode(load(copy), TEXTS, PROMPTS).vectors.shape == (6, 32)


def test_shards_are_read_by_their_index(folder: Path, tmp_path: Path) -> None:
    sharded = load(write_nv_embed(tmp_path, shards=4))
    found, expected = (encode(e, TEXTS, PROMPTS).vectors for e in (sharded, load(folder)))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["renamed", "missing", "surplus", "reshaped"])
def test_every_key_of_the_latent_attention_is_accounted_for(own: Path, kind: str) -> None:
    weights = read_weights(own)
    key = "latent_attention_model.cross_attend_blocks.1.fn.net.2.weight"
    taken = weights.pop(key)
    if kind == "renamed":
        weights[key.replace("net.2", "net.1")] = taken
    elif kind == "surplus":
        weights |= {key: taken, "latent_attention_model.cross_attend_blocks.2.norm.weight": taken}
    elif kind == "reshaped":
        weights[key] = np.ascontiguousarray(taken.T)
    rewrite(own, weights)
    message = {
        "renamed": r"1 missing .*net\.2\.weight\) and 1 that the model .*net\.1\.weight\)",
        "missing": r"1 missing \(latent_attention_model.*net\.2\.weight\)$",
        "surplus": r"1 that the model has no place for \(.*blocks\.2\.norm\.weight\)$",
        "reshaped": r"net\.2\.weight has shape \(128, 32\).* asks for \(32, 128\)",
    }[kind]
    with pytest.raises(TeacherError, match=message):
        loading.inspect_files(teacher(own), own)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    stella = write_stella(tmp_path)
    with pytest.raises(TeacherError, match=r"model_type 'qwen2'.* expected NV-Embed-v2's"):
        loading.inspect_files(teacher(stella), stella)


def test_another_body_is_refused(own: Path) -> None:
    edit_json(own / "config.json", text_config={**NV_TEXT, "model_type": "qwen2"})
    with pytest.raises(TeacherError, match="'qwen2'; NV-Embed-v2's body is a Mistral"):
        loading.inspect_files(teacher(own), own)


def test_another_width_is_refused(folder: Path) -> None:
    with pytest.raises(TeacherError, match=r"4096 wide, .* says 32"):
        loading.inspect_files(teacher(folder, width=4096), folder)


def test_latents_of_another_width_are_refused(tmp_path: Path) -> None:
    written = write_nv_embed(tmp_path, latent={"latent_dim": 64})
    with pytest.raises(TeacherError, match=r"latents as wide as the body \(32\)"):
        loading.inspect_files(teacher(written), written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos": "<end>"}, "does not read </s> as one special token"),
        ({"bos_prepended": False}, "does not put <s> before a text"),
    ],
)
def test_a_tokenizer_of_another_family_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    written = write_nv_embed(tmp_path, **changes)
    with pytest.raises(TeacherError, match=message):
        loading.inspect_files(teacher(written), written)


def test_a_missing_or_broken_tokenizer_is_refused(own: Path) -> None:
    write_json(own / "tokenizer.json", {"version": "1.0"})
    with pytest.raises(TeacherError, match="is not a tokenizer"):
        loading.inspect_files(teacher(own), own)
    (own / "tokenizer.json").unlink()
    with pytest.raises(TeacherError, match=r"tokenizer.json is missing"):
        loading.inspect_files(teacher(own), own)


def test_what_the_latent_configuration_leaves_out_is_the_released_models() -> None:
    sizes = LatentSizes.from_config({"model_type": "latent_attention"}, 4096, "config.json")
    assert sizes == LatentSizes(512, 4096, heads=8, head_width=4096, mult=4)


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    full = NV_TEXT | {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32_000,
    }  # fmt: skip
    body = empty_body(MistralModel, MistralConfig, full, "config.json")
    shapes = [
        *expected_shapes(body, BODY_PREFIX).values(),
        *LatentSizes.from_config({}, 4096, "config.json").shapes().values(),
    ]
    assert sum(int(np.prod(shape)) for shape in shapes) == 7_851_016_192


def test_the_row_of_the_table_is_the_published_model() -> None:
    row = resolve(TeacherSpec(name="nv-embed-v2", prompts={"questions": "@query", "default": ""}))
    assert replace(row, prompts={}, named_prompts={}) == Teacher(
        name="nv-embed-v2",
        encoder="nv-embed",
        repository="nvidia/NV-Embed-v2",
        licence="cc-by-nc-4.0",
        width=4096,
        max_tokens=512,
        dtype="bfloat16",
        prompts={},
    )
    assert row.prompt_for("questions").endswith("\nQuery: ")
