"""A block tells how much of a text its teacher read, whatever the recipe would have allowed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import bert, corpus, lsa, made

from teacher_cache.finish import Build
from teacher_cache.format import CacheError, identity_of, read_json
from teacher_cache.plan import read_plan
from teacher_cache.reader import CacheReader

OWN = 48
"""The longest input of the small encoder's folder; a recipe's is 512 where it says nothing."""


def limits(cache: CacheReader) -> list[int | None]:
    return [block.max_tokens for block in cache.manifest.blocks]


def test_block_has_the_limit_of_the_model_where_the_recipes_is_higher(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    assert limits(cache) == [OWN, None]
    assert cache.tokens(range(len(cache)))[:, 0].max() <= OWN
    texts = corpus(cache.path.parent)
    made(tmp_path / "cut", texts, [bert(small_encoder, max_tokens=20), lsa()])
    assert limits(CacheReader(tmp_path / "cut")) == [20, None]


def begun(cache: CacheReader, folder: Path, limits: Sequence[int | None]) -> Build:
    """A build of the same cache that has no shard yet, and was begun under other limits."""
    shutil.copytree(cache.path, folder, ignore=shutil.ignore_patterns("shards", "manifest.json"))
    plan = read_plan(folder)
    assert plan is not None
    there = Build.from_json(read_json(folder / "build.json"), "")
    pairs = zip(there.blocks, limits, strict=True)
    blocks = tuple(replace(block, max_tokens=limit) for block, limit in pairs)
    identity = identity_of(plan.ids_digest, plan.held_out_rows, plan.rows_per_shard, blocks, None)
    changed = replace(there, blocks=blocks, identity=identity)
    (folder / "build.json").write_text(json.dumps(changed.to_json()))
    return changed


def test_build_begun_when_the_recipes_limit_was_written_down_goes_on(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    before = begun(cache, tmp_path / "own", [512, 512])
    texts = corpus(cache.path.parent)
    manifest = made(tmp_path / "own", texts, [bert(small_encoder), lsa()])
    assert (manifest.identity, manifest.blocks) == (before.identity, before.blocks)


def test_limit_that_only_the_loaded_model_refutes_is_refused_then(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    begun(cache, tmp_path / "own", [30, None])
    texts = corpus(cache.path.parent)
    with pytest.raises(CacheError, match=r"blocks\[0\]\.max_tokens is 30 in the cache, 48 now"):
        made(tmp_path / "own", texts, [bert(small_encoder), lsa()])
    with pytest.raises(CacheError, match=r"bert\.max_tokens is 30 in the cache, 20 now"):
        made(tmp_path / "own", texts, [bert(small_encoder, max_tokens=20), lsa()])
    assert not (tmp_path / "own" / "shards").exists()
