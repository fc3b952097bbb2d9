"""TF-IDF over character n-grams, projected by a truncated SVD (latent semantic analysis).

A teacher of another nature than a transformer, and one that needs no download: it is fitted on a
sample of the corpus, kept beside the cache as JSON and safetensors, and fixed from then on.
Character n-grams inside words give every text in an alphabet of the sample a vector; a text in
another one has none, and stops a build.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.encoders.protocol import Encoded
from teacher_cache.files import commit_bytes
from teacher_cache.teachers import Teacher, TeacherError

VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "model.safetensors"

_NGRAMS = (2, 4)
_FEATURES = 20_000
_BATCH = 512


def files(folder: Path, teacher: Teacher) -> list[Path]:
    """The vocabulary and the weights of a fitted folder.

    Raises:
        TeacherError: one of them is missing.
    """
    found = [folder / VOCABULARY_FILE, folder / WEIGHTS_FILE]
    for path in found:
        if not path.is_file():
            raise TeacherError(f"teacher {teacher.name!r}: {path} is missing from its folder")
    return found


def fit(folder: Path, teacher: Teacher, texts: Iterable[str]) -> None:
    """Fit vocabulary, inverse document frequencies and the SVD, and write them to `folder`.

    Raises:
        TeacherError: the sample is too small for vectors of the asked width.
    """
    from safetensors.numpy import save
    from sklearn.decomposition import TruncatedSVD

    vectorizer = _vectorizer(max_features=_FEATURES)
    sample = list(texts)
    counts = vectorizer.fit_transform(sample)
    width = teacher.width or 0
    if not 0 < width < min(counts.shape):
        raise TeacherError(
            f"teacher {teacher.name!r}: a sample of {counts.shape[0]} texts with "
            f"{counts.shape[1]} n-grams cannot give vectors {width} wide; "
            "lower `width` or raise the number of texts"
        )
    svd = TruncatedSVD(width, random_state=0).fit(counts)
    vocabulary = [str(term) for term in vectorizer.get_feature_names_out()]
    weights = {
        "idf": vectorizer.idf_.astype(np.float32),
        "components": np.ascontiguousarray(svd.components_.T, dtype=np.float32),
    }
    text = json.dumps(vocabulary, ensure_ascii=False)
    commit_bytes(folder / VOCABULARY_FILE, text.encode())
    commit_bytes(folder / WEIGHTS_FILE, save(weights))


def load(
    folder: Path, teacher: Teacher, *, device: str, token_budget: int | None
) -> TfidfSvdEncoder:
    """Load a fitted folder. It runs on the CPU whatever the device, and has no token budget."""
    del device, token_budget
    return TfidfSvdEncoder(folder)


class TfidfSvdEncoder:
    """A fitted TF-IDF + SVD behind the encoder protocol. `tokens` counts a text's known n-grams."""

    pooling = "sum of n-grams"
    max_tokens: int | None = None

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        weights = load_file(folder / WEIGHTS_FILE)
        self.components = weights["components"]
        self.width = int(self.components.shape[1])
        vocabulary = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        self.vectorizer = _vectorizer(vocabulary=vocabulary)
        self.vectorizer.idf_ = weights["idf"].astype(np.float64)

    def prepare(self, texts: Sequence[str], prompts: Sequence[str]) -> Any:
        """The TF-IDF matrix of the texts: sparse [n, features], rows of unit length."""
        return self.vectorizer.transform(
            [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        )

    def encode(self, prepared: Any, on_done: Callable[[int], None]) -> Encoded:
        """Project the TF-IDF rows onto the components of the SVD."""
        vectors = np.empty((prepared.shape[0], self.width), np.float32)
        for start in range(0, len(vectors), _BATCH):
            rows = prepared[start : start + _BATCH]
            vectors[start : start + _BATCH] = rows @ self.components
            on_done(rows.shape[0])
        return Encoded(vectors, prepared.getnnz(axis=1).astype(np.int32))


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer="char_wb", ngram_range=_NGRAMS, sublinear_tf=True, dtype=np.float32, **options
    )
