"""Batches by token budget: every text once, in its place, with little padding, in any memory."""

from functools import partial
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teacher_cache.encoders.batching import Tokenized, encode_batches, padding_waste, plan_batches
from teacher_cache.encoders.layout import Padded
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.teachers import TeacherError

CPU = torch.device("cpu")

lengths = st.lists(st.integers(1, 600), min_size=1, max_size=80).map(
    lambda values: np.array(values, np.int32)
)


def tokenized(texts: list[list[int]], pooled_from: list[int] | None = None) -> Tokenized:
    starts = pooled_from or [0] * len(texts)
    return Tokenized([np.array(text, np.int32) for text in texts], np.array(starts, np.int32))


def describe(batch: Padded) -> torch.Tensor:
    """Sum of a text's ids, its length, and the id where its pooling starts."""
    ids, mask, pooled_from = batch.ids_BL, batch.mask_BL, batch.pooled_from_B
    first = ids.gather(1, pooled_from[:, None])[:, 0]
    return torch.stack([(ids * mask).sum(1), mask.sum(1), first], 1)


def run(texts: Tokenized, budget: int, *, pad_left: bool = False) -> tuple[Encoded, list[int]]:
    done: list[int] = []
    encoded = encode_batches(
        texts,
        describe,
        3,
        collate=partial(Padded.of, pad_id=1000, pad_left=pad_left),
        device=CPU,
        token_budget=budget,
        on_done=done.append,
    )
    return encoded, done


@given(lengths, st.integers(1, 3000))
def test_a_plan_holds_every_text_once_and_keeps_its_budget(
    lengths: NDArray[np.int32], budget: int
) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] == lengths.max()


def test_the_recipes_lengths_waste_two_percent_at_most() -> None:
    # One shard of the recipe's mix: long documents cut at 512, 30 % cut to 1-10 sentences.
    rng = np.random.default_rng(0)
    documents = np.minimum(rng.lognormal(6.2, 0.9, 5734), 512)
    pieces = rng.integers(1, 11, 2458) * rng.normal(24, 6, 2458)
    mixed = np.clip(np.concatenate([documents, pieces]), 3, 512).astype(np.int32)
    rng.shuffle(mixed)
    for budget in (4096, 32_768):
        assert padding_waste(mixed, plan_batches(mixed, budget)) <= 1.02
    unsorted = [np.arange(start, start + 32) for start in range(0, 8192, 32)]
    assert padding_waste(mixed, unsorted) > 1.3


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=40),
    st.integers(1, 200),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_vectors_return_in_the_order_of_the_texts(
    texts: list[list[int]], budget: int, pad_left: bool, random: Random
) -> None:
    starts = [random.randrange(len(text)) for text in texts]
    encoded, done = run(tokenized(texts, starts), budget, pad_left=pad_left)
    expected = [
        [sum(text), len(text), text[start]] for text, start in zip(texts, starts, strict=True)
    ]
    assert encoded.vectors.tolist() == expected
    assert encoded.tokens.tolist() == [len(text) for text in texts]
    assert sum(done) == len(texts)


def test_no_texts_give_no_vectors() -> None:
    encoded, done = run(tokenized([]), 100)
    assert encoded.vectors.shape == (0, 3)
    assert done == []


def test_a_batch_beyond_the_memory_is_taken_in_smaller_ones() -> None:
    texts = [[i] * (1 + i % 7) for i in range(50)]
    sizes: list[int] = []

    def small(batch: Padded) -> torch.Tensor:
        sizes.append(batch.ids_BL.numel())
        if batch.ids_BL.numel() > 20:
            raise torch.OutOfMemoryError("no")
        return describe(batch)

    done: list[int] = []
    encoded = encode_batches(
        tokenized(texts),
        small,
        3,
        collate=partial(Padded.of, pad_id=0),
        device=CPU,
        token_budget=300,
        on_done=done.append,
    )
    assert encoded.vectors[:, 0].tolist() == [sum(text) for text in texts]
    assert sum(done) == 50
    # Each refusal halves what is tried next: from 300 tokens to 20 in a few.
    assert sum(size > 20 for size in sizes) <= 5


def test_one_text_beyond_the_memory_is_an_error() -> None:
    def none(_batch: Padded) -> torch.Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(TeacherError, match="one text of 4 tokens does not fit the memory of cpu"):
        encode_batches(
            tokenized([[1], [1, 2, 3, 4]]),
            none,
            3,
            collate=partial(Padded.of, pad_id=0),
            device=CPU,
            token_budget=4,
            on_done=lambda _done: None,
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_runs_ahead_gives_the_same_vectors() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 99, rng.integers(1, 400)).tolist() for _ in range(3000)]
    table = torch.randn(1000, 512)
    on_gpu = table.cuda()

    def mean(batch: Padded) -> torch.Tensor:
        return batch.mean((on_gpu if batch.ids_BL.is_cuda else table)[batch.ids_BL])

    found, expected = (
        encode_batches(
            tokenized(texts),
            mean,
            512,
            collate=partial(Padded.of, pad_id=0),
            device=device,
            token_budget=4096,
            on_done=lambda _done: None,
        ).vectors
        for device in (torch.device("cuda"), CPU)
    )
    assert np.abs(found - expected).max() < 1e-5
