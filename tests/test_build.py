"""A build writes the corpus in its order, each row the vector that the paper defines."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import (
    ROWS_PER_SHARD,
    SAMPLE,
    WIDTH,
    assert_rounded,
    bert,
    contents,
    copy,
    corpus,
    in_cache_order,
    joined,
    lsa,
    made,
    unit,
    write_corpus,
)
from numpy.typing import NDArray
from safetensors.numpy import load_file
from shard_files import shard_file
from small_models import VOCABULARY, change_weights, write_encoder

from teacher_cache.format import CacheError, record_path
from teacher_cache.reader import CacheReader
from teacher_cache.summary import summarize
from teacher_cache.survey import survey

LETTERS = "embeddings.word_embeddings.weight"
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def library(small_encoder: Path) -> Any:
    """The same teacher in the library that defines its format."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(small_encoder), device="cpu")


def encoded(library: Any, texts: list[str], prompt: str = "", max_tokens: int = 48) -> Floats:
    """Each text alone, so that no padding is involved."""
    library.max_seq_length = max_tokens
    vectors = [library.encode(text, prompt=prompt or None) for text in texts]
    return np.asarray(vectors, np.float64)


def token_counts(library: Any, texts: list[str], max_tokens: int = 48) -> list[int]:
    lengths = [len(library.tokenizer(text)["input_ids"]) for text in texts]
    return [min(length, max_tokens) for length in lengths]


def column(reader: CacheReader, name: str) -> NDArray[Any]:
    """One of the small columns, of all rows."""
    parts = [
        np.stack(reader.shard(i).column(name).to_numpy(zero_copy_only=False))
        for i in range(len(reader.manifest.shards))
    ]
    return np.concatenate(parts)


def test_rows_are_the_corpus_in_order_with_the_held_out_texts_last(cache: CacheReader) -> None:
    expected = in_cache_order(corpus(cache.path.parent))
    rows = range(len(cache))
    assert cache.texts(rows) == [text.text for text in expected]
    assert cache.ids(rows) == [text.id.hex() for text in expected]
    assert cache.sources(rows) == [text.source for text in expected]
    held_out = [row for row, text in enumerate(expected) if text.held_out]
    assert list(cache.held_out_rows) == held_out
    assert len(held_out) == 9
    # In the stream they lie scattered: the order above is the build's doing.
    stream = [text.held_out for text in corpus(cache.path.parent)]
    assert stream != sorted(stream)


def test_vectors_are_the_normalised_blocks_concatenated(cache: CacheReader, library: Any) -> None:
    rows = range(len(cache))
    texts = cache.texts(rows)
    exact = joined(encoded(library, texts), lsa_vectors(cache, texts)[0])
    assert len({len(text) for text in texts}) > 30
    assert_rounded(cache.vectors(rows), exact)


def test_columns_keep_raw_norms_and_token_counts(cache: CacheReader, library: Any) -> None:
    texts = cache.texts(range(len(cache)))
    vectors, known = lsa_vectors(cache, texts)
    tokens, norms = column(cache, "tokens"), column(cache, "norms")
    assert tokens[:, 0].tolist() == token_counts(library, texts)
    assert tokens[:, 1].tolist() == known.tolist()
    lengths = [np.linalg.norm(encoded(library, texts), axis=1), np.linalg.norm(vectors, axis=1)]
    np.testing.assert_allclose(norms, np.stack(lengths, axis=1), rtol=1e-5)
    assert summarize(survey(cache))["blocks"][0]["mean_tokens"] == pytest.approx(
        tokens[:, 0].mean()
    )


def test_fitted_teacher_spans_nearly_all_that_a_full_svd_can(cache: CacheReader) -> None:
    weights = load_file(cache.path / "teachers" / "lsa" / "model.safetensors")
    sample = cache.texts(range(SAMPLE))
    grams, idf = fit_idf(sample)
    np.testing.assert_allclose(weights["idf"], idf, rtol=1e-6)
    rows = tfidf(sample, grams, idf)
    components = weights["components"].astype(np.float64)
    np.testing.assert_allclose(components.T @ components, np.eye(WIDTH), atol=1e-5)
    largest = np.linalg.svd(rows, compute_uv=False)[:WIDTH]
    assert ((rows @ components) ** 2).sum() > 0.999 * (largest**2).sum()


def test_manifest_tells_what_was_built(cache: CacheReader, small_encoder: Path) -> None:
    manifest = cache.manifest
    assert [shard.rows for shard in manifest.shards] == [16, 16, 16, 8]
    assert [(block.teacher, block.offset, block.width) for block in manifest.blocks] == [
        ("bert", 0, 32),
        ("lsa", 32, WIDTH),
    ]
    assert manifest.width == 32 + WIDTH
    assert manifest.rows_per_shard == ROWS_PER_SHARD
    assert manifest.blocks[0].repository == str(small_encoder)
    assert manifest.blocks[0].pooling == "mean"
    assert manifest.blocks[1].repository == "fitted:tfidf-svd"
    texts = corpus(cache.path.parent)
    assert Counter(text.source for text in texts) == {"web": 37, "asked": 19}
    assert manifest.counts == texts.counts.as_dict()


def test_prompts_go_before_the_texts_of_their_source_alone(
    small_encoder: Path, library: Any, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    prompts = {"asked": "question: ", "default": "the "}
    teacher = bert(small_encoder, prompts=prompts, max_tokens=20)
    made(tmp_path / "cache", corpus(tmp_path), [teacher])
    cache = CacheReader(tmp_path / "cache")
    rows = range(len(cache))
    given = [
        ("question: " if source == "asked" else "the ") + text
        for text, source in zip(cache.texts(rows), cache.sources(rows), strict=True)
    ]
    assert_rounded(cache.vectors(rows), unit(encoded(library, given, max_tokens=20)))
    assert column(cache, "tokens")[:, 0].tolist() == token_counts(library, given, max_tokens=20)
    assert Counter(column(cache, "tokens")[:, 0].tolist())[20] > 10
    for source, prompt in (("asked", "question: "), ("web", "the ")):
        mine = [row for row in rows if cache.sources([row]) == [source]]
        exact = unit(encoded(library, cache.texts(mine), prompt, max_tokens=20))
        assert_rounded(cache.vectors(mine), exact)


def test_prompts_reach_a_fitted_teacher_too(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    teacher = lsa(prompts={"asked": "silver river "})
    made(tmp_path / "cache", corpus(tmp_path), [teacher])
    cache = CacheReader(tmp_path / "cache")
    rows = range(len(cache))
    given = [
        ("silver river " if source == "asked" else "") + text
        for text, source in zip(cache.texts(rows), cache.sources(rows), strict=True)
    ]
    assert_rounded(cache.vectors(rows), unit(lsa_vectors(cache, given)[0]))


def test_narrower_arithmetic_stays_near_and_is_named(
    small_encoder: Path, cache: CacheReader, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    texts = corpus(tmp_path, texts=10)
    manifest = made(tmp_path / "cache", texts, [bert(small_encoder, dtype="bfloat16")])
    assert manifest.blocks[0].dtype == "bfloat16"
    reader = CacheReader(tmp_path / "cache")
    rows = [cache.texts(range(len(cache))).index(text) for text in reader.texts(range(10))]
    exact = cache.vectors(rows, ["bert"]).astype(np.float64)
    cosines = (reader.vectors(range(10)) * exact).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999


def test_vector_that_is_not_finite_stops_with_teacher_and_text(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    folder = write_encoder(tmp_path / "broken", layers=1)
    # One letter's embedding: texts without it are well.
    letter = VOCABULARY.index("!")
    change_weights(folder, LETTERS, lambda weights: weights[letter].fill_(math.nan))
    texts = in_cache_order(corpus(tmp_path))
    first = next(i for i, text in enumerate(texts) if "!" in text.text)
    shard = first // ROWS_PER_SHARD
    found = rf"teacher bert: the vector of text {texts[first].id.hex()} is not finite"
    cache = tmp_path / "cache"
    with pytest.raises(CacheError, match=found):
        made(cache, corpus(tmp_path), [bert(folder)])
    assert sorted(path.name for path in (cache / "shards").glob("*")) == [
        f"{i:05d}.{kind}" for i in range(shard) for kind in ("arrow", "json")
    ]
    assert not (cache / "manifest.json").exists()


def test_vector_of_length_zero_stops_with_teacher_and_text(tmp_path: Path) -> None:
    """No n-gram of the last text is known to a teacher that was fitted on the others."""
    (tmp_path / "web.txt").write_text("".join(f"{i} in a row\n" for i in range(20)) + "日本\n")
    source = {"name": "web", "path": "web.txt"}
    texts = corpus(tmp_path, sources=[source], held_out=0)
    last = list(texts)[-1]
    cache = tmp_path / "cache"
    with pytest.raises(CacheError, match=f"teacher lsa: .* {last.id.hex()} is zero.*'日本'"):
        made(cache, texts, [lsa(sample=16, width=3)])
    assert sorted(path.name for path in (cache / "shards").glob("00001*")) == []


def test_finished_cache_is_left_alone(cache: CacheReader, small_encoder: Path) -> None:
    before = contents(cache.path)
    times = {path: path.stat().st_mtime_ns for path in cache.path.rglob("*")}
    manifest = made(cache.path, corpus(cache.path.parent), [bert(small_encoder), lsa()])
    assert manifest == cache.manifest
    assert contents(cache.path) == before
    assert {path: path.stat().st_mtime_ns for path in cache.path.rglob("*")} == times


def test_lost_and_short_shards_are_written_again_as_they_were(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    folder = copy(cache.path.parent, tmp_path / "copy")
    lost = folder / cache.path.name
    shard_file(lost, 1).unlink()
    with shard_file(lost, 2).open("r+b") as stream:
        stream.truncate(1000)
    made(lost, corpus(folder), [bert(small_encoder), lsa()])
    assert contents(lost) == contents(cache.path)


def test_records_follow_a_shard_that_came_out_otherwise(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    """As where another device encodes a lost shard again: its last bits are others."""
    folder = copy(cache.path.parent, tmp_path / "copy")
    lost = folder / cache.path.name
    shard_file(lost, 1).unlink()
    of_another_device = cache.manifest.shards[1].checksum[::-1]
    for path in (lost / "manifest.json", record_path(lost, 1)):
        text = path.read_text()
        path.write_text(text.replace(cache.manifest.shards[1].checksum, of_another_device))
    made(lost, corpus(folder), [bert(small_encoder), lsa()])
    assert contents(lost) == contents(cache.path)


def fit_idf(sample: list[str]) -> tuple[list[str], Floats]:
    """The n-grams of a sample, sorted, and their smoothed inverse document frequencies."""
    seen = Counter(gram for text in sample for gram in set(ngrams(text)))
    grams = sorted(seen)
    idf = [math.log((1 + len(sample)) / (1 + seen[gram])) + 1 for gram in grams]
    return grams, np.asarray(idf)


def tfidf(texts: list[str], grams: list[str], idf: Floats) -> Floats:
    """Rows of (1 + ln tf) · idf, of unit length."""
    rows = np.zeros((len(texts), len(grams)))
    place = {gram: i for i, gram in enumerate(grams)}
    for row, text in zip(rows, texts, strict=True):
        for gram, count in Counter(ngrams(text)).items():
            if gram in place:
                row[place[gram]] = (1 + math.log(count)) * idf[place[gram]]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def ngrams(text: str) -> list[str]:
    """The n-grams of 2 to 4 characters of every word with a space on either side."""
    words = [f" {word} " for word in text.lower().split()]
    return [word[i : i + n] for word in words for n in (2, 3, 4) for i in range(len(word) - n + 1)]


def lsa_vectors(cache: CacheReader, texts: list[str]) -> tuple[Floats, NDArray[np.int64]]:
    """Latent semantic analysis in float64 with the components beside the cache; known n-grams."""
    grams, idf = fit_idf(cache.texts(range(SAMPLE)))
    rows = tfidf(texts, grams, idf)
    weights = load_file(cache.path / "teachers" / "lsa" / "model.safetensors")
    return rows @ weights["components"].astype(np.float64), (rows != 0).sum(axis=1)
