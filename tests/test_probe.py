"""The check before a build: healthy teachers pass in every dtype, broken ones are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_nv_embed, write_stella

from teacher_cache.encoders import body as bodies
from teacher_cache.encoders import loading, tfidf_svd
from teacher_cache.encoders.layout import Padded
from teacher_cache.encoders.probe import probe
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve

INSTRUCTION = "Instruct: Given a question\nQuery: "

Loaded = tuple[Any, Teacher]
States = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Teacher]]:
    folder = tmp_path_factory.mktemp("teachers")
    prompts = {"default": "", "questions": INSTRUCTION}
    found = {}
    for name, write, width in (
        ("stella-en-1.5b-v5", write_stella, 40),
        ("nv-embed-v2", write_nv_embed, 32),
    ):
        path = write(folder / name)
        spec = TeacherSpec(name=name, path=str(path), width=width, dtype="float32", prompts=prompts)
        found[name] = path, resolve(spec)
    return found


@pytest.fixture(params=["stella-en-1.5b-v5", "nv-embed-v2"])
def loaded(rows: dict[str, tuple[Path, Teacher]], request: pytest.FixtureRequest) -> Loaded:
    folder, teacher = rows[request.param]
    return loading.load_encoder(teacher, folder, device="cpu", token_budget=None), teacher


@pytest.mark.parametrize("max_tokens", [512, 14])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("stella-en-1.5b-v5", "float32"),
        ("stella-en-1.5b-v5", "bfloat16"),
        ("nv-embed-v2", "float32"),
        ("nv-embed-v2", "bfloat16"),
        ("nv-embed-v2", "float16"),
    ],
)
def test_a_healthy_teacher_passes_in_every_dtype_it_may_have(
    rows: dict[str, tuple[Path, Teacher]], name: str, dtype: Any, max_tokens: int
) -> None:
    folder, teacher = rows[name]
    teacher = replace(teacher, dtype=dtype, max_tokens=max_tokens)
    probe(loading.load_encoder(teacher, folder, device="cpu", token_budget=None), teacher)


def test_a_causal_body_is_caught(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, teacher = loaded
    states = encoder.body.forward

    def causal(*, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        before = torch.ones(2 * (input_ids.shape[1],), dtype=torch.bool).tril()
        return states(input_ids=input_ids, attention_mask=attention_mask & before)

    monkeypatch.setattr(encoder.body, "forward", causal)
    with pytest.raises(TeacherError, match=r"attention is causal: .* first by 0"):
        probe(encoder, teacher)


def test_a_body_as_the_library_loads_it_is_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded

    def stock(body: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        return body(input_ids=ids, attention_mask=mask, is_causal=True).last_hidden_state

    monkeypatch.setattr(bodies, "token_states", stock)
    with pytest.raises(TeacherError, match="attention is causal"):
        probe(encoder, teacher)


def test_causal_attention_is_caught_in_half_precision(
    rows: dict[str, tuple[Path, Teacher]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, teacher = rows["nv-embed-v2"]
    teacher = replace(teacher, dtype="bfloat16")
    encoder: Any = loading.load_encoder(teacher, folder, device="cpu", token_budget=None)
    monkeypatch.setattr(
        bodies,
        "token_states",
        lambda body, ids, mask: body(ids, attention_mask=mask, is_causal=True).last_hidden_state,
    )
    with pytest.raises(TeacherError, match="attention is causal"):
        probe(encoder, teacher)


def test_padding_that_is_attended_is_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded
    states: States = bodies.token_states
    monkeypatch.setattr(
        bodies, "token_states", lambda body, ids, mask: states(body, ids, torch.ones_like(mask))
    )
    with pytest.raises(TeacherError, match="alone and in a padded batch differ: cosine"):
        probe(encoder, teacher)


def test_padding_that_is_pooled_is_caught(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, teacher = loaded
    mean: States = bodies.masked_mean
    monkeypatch.setattr(
        bodies, "masked_mean", lambda states, mask: mean(states, torch.ones_like(mask))
    )
    with pytest.raises(TeacherError, match="alone and in a padded batch differ: cosine"):
        probe(encoder, teacher)


def test_vectors_in_the_order_of_the_batches_are_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded
    encode = encoder.encode

    def by_length(prepared: Any, on_done: Callable[[int], None]) -> Encoded:
        encoded: Encoded = encode(prepared, on_done)
        return Encoded(encoded.vectors[np.argsort(prepared.lengths)], encoded.tokens)

    monkeypatch.setattr(encoder, "encode", by_length)
    with pytest.raises(TeacherError, match=r"differ: cosine"):
        probe(encoder, teacher)


def test_lengths_that_depend_on_the_batch_are_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded
    forward = encoder.forward

    def divided_by_all(batch: Padded) -> torch.Tensor:
        vectors: torch.Tensor = forward(batch)
        return vectors * batch.mask_BL.sum(1, keepdim=True) / batch.mask_BL.shape[1]

    monkeypatch.setattr(encoder, "forward", divided_by_all)
    with pytest.raises(TeacherError, match=r"cosine 1\.0.*lengths by [1-9]"):
        probe(encoder, teacher)


def test_vectors_that_are_not_finite_are_caught(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, teacher = loaded
    mean: States = bodies.masked_mean
    monkeypatch.setattr(bodies, "masked_mean", lambda *given: mean(*given) * torch.nan)
    with pytest.raises(TeacherError, match="vectors in float32 are not finite"):
        probe(encoder, teacher)


def test_another_width_is_caught(loaded: Loaded) -> None:
    encoder, teacher = loaded
    with pytest.raises(TeacherError, match="vectors 8192 wide, says"):
        probe(encoder, replace(teacher, width=8192))


def test_a_teacher_without_tokens_is_asked_about_its_vectors_alone(tmp_path: Path) -> None:
    teacher = replace(resolve(TeacherSpec(name="tfidf-svd")), width=4)
    texts = [f"the river number {i} rose in winter {i * 7}" for i in range(40)]
    tfidf_svd.fit(tmp_path, teacher, texts)
    encoder = loading.load_encoder(teacher, tmp_path, device="cpu", token_budget=None)
    probe(encoder, teacher)
    with pytest.raises(TeacherError, match="vectors 5 wide, says 4 and gives 4"):
        probe(encoder, replace(teacher, width=5))
