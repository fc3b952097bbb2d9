"""Small real work for the builder: a corpus of two sources, a BERT teacher and a fitted one."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.corpus import Corpus, CorpusSpec, Text
from teacher_cache.build import Options, build
from teacher_cache.format import Manifest
from teacher_cache.ranks import Rank
from teacher_cache.teachers import Teacher, TeacherSpec, resolve

ROWS_PER_SHARD = 16
TEXTS = 56
WIDTH = 8
SAMPLE = 32

_WORDS = """
    river house letter winter engine table window teacher captain garden music silver bridge
    paper, morning, evening; slowly near under turned carried opened remembers, don't knows!
"""


def write_corpus(folder: Path) -> None:
    """`web.jsonl` and `asked.jsonl`: lines of 1 to 24 words, of which some come twice."""
    rng = random.Random(7)
    for source, count in (("web", 50), ("asked", 20)):
        texts = [" ".join(rng.choices(_WORDS.split(), k=rng.randint(1, 24))) for _ in range(count)]
        texts += texts[:3]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{source}.jsonl").write_text("".join(lines))


def corpus(folder: Path, **changes: Any) -> Corpus:
    """The corpus over `write_corpus`'s files; `changes` are fields of its specification."""
    sources = [
        {"name": "web", "path": "web.jsonl", "weight": 2},
        {"name": "asked", "path": "asked.jsonl"},
    ]
    spec = {"sources": sources, "texts": TEXTS, "held_out": 0.2, **changes}
    return Corpus(CorpusSpec.model_validate(spec), folder)


def in_cache_order(texts: Corpus) -> list[Text]:
    """What a cache must hold: the texts as they come, the held-out ones last."""
    return sorted(texts, key=lambda text: text.held_out)


def bert(folder: Path, **changes: Any) -> Teacher:
    """The teacher `bert` in a sentence-transformers folder."""
    spec = {"name": "bert", "encoder": "sentence-transformers", "path": str(folder)}
    return resolve(TeacherSpec.model_validate({**spec, **changes}))


def lsa(**changes: Any) -> Teacher:
    """The teacher `lsa`, which is fitted on the corpus."""
    spec = {"name": "lsa", "encoder": "tfidf-svd", "width": WIDTH, "sample": SAMPLE}
    return resolve(TeacherSpec.model_validate({**spec, **changes}))


TWO = [lsa(name="left", width=4, sample=12), lsa(name="right", width=3, sample=13)]
"""Two fitted teachers."""


def make(
    cache: Path, texts: Corpus, teachers: Sequence[Teacher], *, rank: Rank | None = None
) -> Manifest | None:
    """Build a cache of small shards; batches hold few texts, so that there are several."""
    options = Options(rank=rank or Rank(), token_budget=128, rows_per_shard=ROWS_PER_SHARD)
    return build(cache, texts, teachers, options=options)


def made(cache: Path, texts: Corpus, teachers: Sequence[Teacher]) -> Manifest:
    """`make`, where nobody else is at work."""
    manifest = make(cache, texts, teachers)
    assert manifest is not None
    return manifest


def made_of_two(folder: Path) -> Path:
    """A whole cache under `TWO`: quick to encode, and with files of every kind."""
    write_corpus(folder)
    made(folder / "whole", corpus(folder), TWO)
    return folder / "whole"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def unit(vectors: ArrayLike) -> NDArray[np.float64]:
    """Rows of length 1, in float64."""
    exact = np.asarray(vectors, np.float64)
    return exact / np.sqrt((exact**2).sum(axis=1, keepdims=True))


def joined(*blocks: ArrayLike) -> NDArray[np.float64]:
    """The paper's target in float64: norm(norm(a) ‖ norm(b))."""
    return unit(np.concatenate([unit(block) for block in blocks], axis=1))


def assert_rounded(found: NDArray[np.float16], exact: NDArray[np.float64]) -> None:
    """`found` is `exact` in float16, but for float32's own error before the rounding."""
    assert found.dtype == np.float16
    assert found.shape == exact.shape
    error = np.abs(found.astype(np.float64) - exact)
    assert (error <= 2.0**-11 * np.abs(exact) + 3e-6).all(), error.max()
