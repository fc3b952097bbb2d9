"""Packed texts against padded ones, on the native teachers' real layouts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_nv_embed, write_stella
from transformers import AttentionInterface

from teacher_cache.encoders import loading
from teacher_cache.encoders.choice import Comparison, TwoLayouts, choose, compare
from teacher_cache.encoders.layout import PACKED, Packed, attend_packed
from teacher_cache.encoders.probe import probe
from teacher_cache.encoders.protocol import FloatArray
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve

TEXTS = ["hello world", "the quiet engine " * 9, "x", "Which river, Königsberg? 中文", "a b c d e"]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "stella-en-1.5b-v5": write_stella,
    "nv-embed-v2": write_nv_embed,
}
WIDTHS = {"stella-en-1.5b-v5": 40, "nv-embed-v2": 32}

Loaded = tuple[Any, Teacher]


def load(folder: Path, name: str, dtype: str = "float32", device: str = "cpu") -> Loaded:
    spec = {"name": name, "path": str(folder), "width": WIDTHS[name], "dtype": dtype}
    teacher = resolve(TeacherSpec.model_validate(spec))
    return loading.load_encoder(teacher, folder, device=device, token_budget=None), teacher


@pytest.fixture(params=sorted(WRITERS))
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    return load(WRITERS[request.param](tmp_path), request.param)


def vectors(encoder: Any, teacher: Teacher, texts: list[str], *, packed: bool) -> FloatArray:
    prompts = sorted(teacher.prompts.values())
    encoder.packed = packed
    prepared = encoder.prepare(texts, [prompts[i % len(prompts)] for i in range(len(texts))])
    found: FloatArray = encoder.encode(prepared, lambda _: None).vectors
    return found


def test_packed_texts_have_the_vectors_of_padded_ones(loaded: Loaded) -> None:
    padded, packed = (vectors(*loaded, TEXTS, packed=each) for each in (False, True))
    assert np.abs(packed - padded).max() <= 1e-5 * np.abs(padded).max()


def test_packed_texts_run_in_one_row_without_padding(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded
    shapes = []

    def seen(module: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        shapes.append((query.shape[0], query.shape[2]))
        return attend_packed(module, query, *rest, **named)

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, seen)
    vectors(encoder, teacher, TEXTS, packed=True)
    prompts = sorted(teacher.prompts.values())
    prepared = encoder.prepare(TEXTS, [prompts[i % len(prompts)] for i in range(len(TEXTS))])
    assert set(shapes) == {(1, int(prepared.lengths.sum()))}


def test_a_packed_text_does_not_see_its_neighbours(loaded: Loaded) -> None:
    one, other = (
        vectors(*loaded, ["a b c d e", text, "hello world"], packed=True)
        for text in ("x y z", "p q r")
    )
    assert np.array_equal(one[[0, 2]], other[[0, 2]])
    assert not np.allclose(one[1], other[1], atol=1e-3)


def test_pooled_states_are_kept_of_packed_texts_too(tmp_path: Path) -> None:
    folder = write_stella(tmp_path)
    spec = {"name": "stella-en-1.5b-v5", "path": str(folder), "width": 40, "dtype": "float32"}
    teacher = replace(resolve(TeacherSpec.model_validate(spec)), keep_pooled=True)
    encoder: Any = loading.load_encoder(teacher, folder, device="cpu", token_budget=None)
    prepared = encoder.prepare(TEXTS, [""] * len(TEXTS))
    padded = encoder.encode(prepared, lambda _: None).pooled
    encoder.packed = True
    assert np.allclose(encoder.encode(prepared, lambda _: None).pooled, padded, atol=1e-5)


def test_the_check_before_a_build_passes_packed_texts(loaded: Loaded) -> None:
    encoder, teacher = loaded
    encoder.packed = True
    probe(encoder, teacher)


def test_packed_texts_that_see_each_other_are_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_as_one(
        module: Any, query: torch.Tensor, *rest: Any, bounds: torch.Tensor, **n: Any
    ) -> Any:
        return attend_packed(module, query, *rest, bounds=bounds[[0, -1]], **n)

    encoder, teacher = loaded
    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, all_as_one)
    encoder.packed = True
    with pytest.raises(TeacherError, match="alone and in a padded batch differ: cosine"):
        probe(encoder, teacher)


def test_causal_attention_over_packed_texts_is_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def causal(_: Any, query: torch.Tensor, *states: torch.Tensor, **named: Any) -> Any:
        key, value = (
            each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in states[:2]
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        return attended.transpose(1, 2), None

    encoder, teacher = loaded
    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, causal)
    encoder.packed = True
    with pytest.raises(TeacherError, match="attention is causal"):
        probe(encoder, teacher)


def test_each_packed_text_is_pooled_from_its_own_first_position() -> None:
    rng = np.random.default_rng(0)
    rows = [np.arange(n, dtype=np.int32) for n in (3, 1, 7)]
    starts = np.array([1, 0, 5], np.int32)
    batch = Packed.of(rows, starts)
    states = rng.standard_normal((11, 4))
    means = batch.mean(torch.from_numpy(states)[None])
    expected = [states[1:3].mean(0), states[3:4].mean(0), states[9:11].mean(0)]
    assert np.allclose(means.numpy(), expected, atol=1e-6)
    assert batch.place_1T[0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6]


def test_without_a_kernel_texts_stay_padded(loaded: Loaded) -> None:
    encoder, teacher = loaded
    choose(encoder, replace(teacher, dtype="bfloat16"))
    assert not encoder.packed


def test_a_comparison_runs_both_layouts_and_leaves_the_encoder_as_it_was(loaded: Loaded) -> None:
    encoder, _ = loaded
    assert isinstance(encoder, TwoLayouts)
    found = compare(encoder)
    assert found.cosine >= 0.9999
    assert min(found.padded, found.packed) > 0
    assert not encoder.packed


@pytest.mark.parametrize(
    ("padded", "packed", "cosine", "better"),
    [(1.1, 1.0, 1.0, True), (1.01, 1.0, 1.0, False), (2.0, 1.0, 0.999, False)],
)
def test_packing_must_be_faster_and_equal(
    padded: float, packed: float, cosine: float, better: bool
) -> None:
    assert Comparison(padded, packed, cosine).packed_is_better == better


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_kernel_of_a_gpu_gives_the_vectors_of_padded_texts(name: str, tmp_path: Path) -> None:
    encoder, teacher = load(WRITERS[name](tmp_path), name, "bfloat16", "cuda")
    long = [text * 9 for text in TEXTS]
    padded, packed = (
        torch.from_numpy(vectors(encoder, teacher, long, packed=each)) for each in (False, True)
    )
    assert torch.cosine_similarity(padded, packed).min() >= 0.9999
