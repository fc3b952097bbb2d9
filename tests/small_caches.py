"""A small real cache for the tests of training: real sentences, two fitted teachers, no network."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from data.corpus import Corpus, CorpusSpec
from teacher_cache.build import Options, build
from teacher_cache.teachers import TeacherSpec, resolve

_WHO = ("the old sailor", "a young doctor", "my neighbour", "the night train", "our teacher")
_DOES = ("sees", "forgets", "follows", "describes", "repairs", "draws")
_WHAT = ("a green boat", "the last letter", "an empty house", "the river", "seven clocks", "music")
_WHEN = ("in the morning", "after the long winter storm", "every Tuesday")

SENTENCES = [" ".join(words) for words in product(_WHO, _DOES, _WHAT, _WHEN)]


def write_cache(
    folder: Path,
    *,
    texts: int = 240,
    seed: int = 0,
    widths: tuple[int, int] = (12, 8),
    held_out: float = 0.2,
) -> Path:
    """Build a cache of `texts` sentences under two TF-IDF teachers, `left` and `right`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "texts.jsonl"
    step = len(SENTENCES) // texts
    chosen = SENTENCES[:: step or 1][:texts]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    spec = CorpusSpec.model_validate(
        {"sources": [{"name": "made", "path": str(source)}], "held_out": held_out, "seed": seed}
    )
    teachers = [
        resolve(
            TeacherSpec.model_validate(
                {"name": name, "encoder": "tfidf-svd", "width": width, "sample": 40 + width}
            )
        )
        for name, width in zip(("left", "right"), widths, strict=True)
    ]
    cache = folder / "cache"
    build(cache, Corpus(spec), teachers, options=Options(rows_per_shard=64))
    return cache
