"""What a look into a cache tells: its numbers against others, its tables, its picture."""

import json
import re
import struct
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from forging import change_manifest
from jobs import bert, copy, corpus, lsa, made, unit, write_corpus
from scipy.stats import spearmanr
from small_caches import write_cache

import teacher_cache.survey
from cli.cache import app
from cli.console import run
from data.corpus import Corpus, CorpusSpec
from teacher_cache.picture import draw
from teacher_cache.reader import CacheReader
from teacher_cache.summary import summarize
from teacher_cache.survey import survey

Look = Callable[..., tuple[object, str, str]]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Look:
    """Run `jasper-cache inspect` in this process."""

    def ran(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["jasper-cache", "inspect", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(app)
        return end.value.code, *capsys.readouterr()

    return ran


def test_lengths_norms_and_sizes_are_those_of_the_rows(cache: CacheReader) -> None:
    facts = summarize(survey(cache))
    texts = cache.texts(range(len(cache)))
    lengths = sorted(map(len, texts))
    characters = facts["characters"]
    assert (characters["min"], characters["max"]) == (lengths[0], lengths[-1])
    assert characters["median"] == (lengths[27] + lengths[28]) / 2
    assert characters["mean"] == pytest.approx(sum(lengths) / 56)
    assert sum(characters["histogram"]["counts"]) == 56
    small = [cache.shard(number).to_pydict() for number in range(4)]
    for place, block in enumerate(facts["blocks"]):
        tokens = [row[place] for shard in small for row in shard["tokens"]]
        norms = [row[place] for shard in small for row in shard["norms"]]
        assert block["mean_tokens"] == block["tokens"]["mean"] == pytest.approx(np.mean(tokens))
        assert block["longest"] == tokens.count(max(tokens)) / 56
        assert (block["norms"]["min"], block["norms"]["max"]) == (min(norms), max(norms))
        assert block["mean_norm"] == pytest.approx(np.mean(norms))
    assert facts["row_bytes"]["embedding"] == 2 * cache.manifest.width
    assert facts["row_bytes"]["id"] == 16
    files = [path for path in cache.path.rglob("*") if path.is_file()]
    assert sum(facts["disk"].values()) == sum(path.stat().st_size for path in files)
    assert set(facts["disk"]) == {"*.json", "plan/", "shards/", "teachers/"}
    assert facts["sample"] == {"shards": 4, "rows": 56, "pair_rows": 56}


def test_kept_pooled_states_are_told_and_weighed(
    small_encoder: Path, tmp_path: Path, look: Look
) -> None:
    write_corpus(tmp_path)
    made(tmp_path / "cache", corpus(tmp_path), [bert(small_encoder, keep_pooled=True), lsa()])
    facts = summarize(survey(CacheReader(tmp_path / "cache")))
    assert (facts["pooled"]["teacher"], facts["row_bytes"]["pooled"]) == ("bert", 2 * 32)
    assert "pooled states of bert are kept, 32 wide\n" in look(tmp_path / "cache")[1]


def test_agreement_is_spearman_s_and_the_share_of_common_neighbours(cache: CacheReader) -> None:
    facts = summarize(survey(cache))
    vectors = cache.vectors(range(56)).astype(np.float64)
    cosines = [part @ part.T for part in (unit(vectors[:, :32]), unit(vectors[:, 32:]))]
    pairs = list(combinations(range(56), 2))
    both = [[similarity[i, j] for i, j in pairs] for similarity in cosines]
    (found,) = facts["agreement"]
    assert found["teachers"] == ["bert", "lsa"]
    assert found["order"] == pytest.approx(spearmanr(*both).statistic, abs=1e-4)
    shares = []
    for row in range(56):
        others = [other for other in range(56) if other != row]
        near = [set(sorted(others, key=lambda o: -s[row, o])[:10]) for s in cosines]
        shares.append(len(near[0] & near[1]) / 10)
    assert found["neighbours@10"] == pytest.approx(np.mean(shares))
    for name, values in zip(("bert", "lsa"), both, strict=True):
        assert facts["similarities"][name]["median"] == pytest.approx(np.median(values), abs=1e-6)
    together = np.mean(both, axis=0)
    assert facts["similarities"]["together"]["max"] == pytest.approx(max(together), abs=1e-3)


def test_a_teacher_agrees_with_itself_in_everything(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    made(
        tmp_path / "cache", corpus(tmp_path), [lsa(), lsa(name="again"), lsa(name="less", width=4)]
    )
    (same, *others) = survey(CacheReader(tmp_path / "cache")).agreements
    assert same.teachers == ("lsa", "again")
    assert same.order == pytest.approx(1)
    assert same.neighbours == pytest.approx(1)
    assert [each.teachers for each in others] == [("lsa", "less"), ("again", "less")]
    assert all(0.3 < each.order < 0.99 for each in others)


def test_large_cache_is_sampled_and_the_sample_is_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CacheReader(write_cache(tmp_path))
    whole = summarize(survey(reader))
    monkeypatch.setattr(teacher_cache.survey, "SHARDS", 2)
    monkeypatch.setattr(teacher_cache.survey, "PAIR_ROWS", 150)
    advanced: list[int] = []
    found = survey(reader, advanced.append)
    facts = summarize(found)
    assert advanced == [1, 1]
    rows = sum(reader.manifest.shards[number].rows for number in found.shards)
    assert facts["sample"] == {"shards": 2, "rows": rows, "pair_rows": 150}
    assert summarize(survey(CacheReader(reader.path))) == facts
    assert len(found.similarities["left"]) == 150 * 149 // 2
    assert facts["agreement"][0]["order"] == pytest.approx(whole["agreement"][0]["order"], abs=0.1)


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_picture_is_drawn_the_same_for_any_number_of_teachers(
    teachers: int, small_encoder: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    rows = [lsa(), bert(small_encoder), lsa(name="wide", width=12)][:teachers]
    made(tmp_path / "cache", corpus(tmp_path), rows)
    found = survey(CacheReader(tmp_path / "cache"))
    pictures = []
    for name in ("a.png", "b.png"):
        draw(found, summarize(found), tmp_path / name)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0][:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", pictures[0][16:24]) == (1755, 1040)


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_cache_of_hardly_any_rows_is_shown_too(
    texts: int, small_encoder: Path, tmp_path: Path, look: Look
) -> None:
    names = [f"[red]$_${number}" for number in range(9)]  # markup, and bad mathematics
    for number, name in enumerate(names):
        line = json.dumps({"text": f"the river and the house have {number} windows"})
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n{line}\n")
    sources = [{"name": name, "path": f"{name}.jsonl"} for name in names]
    spec = CorpusSpec.model_validate({"sources": sources})
    made(tmp_path / "nine", Corpus(spec, tmp_path), [lsa(width=2)])
    code, out, _ = look(tmp_path / "nine", "--png", tmp_path / "nine.png")
    assert code == 0
    assert all(name in out for name in names)
    few = {"sources": sources[:1], "texts": texts}
    (tmp_path / f"{names[0]}.jsonl").write_text(
        "".join(json.dumps({"text": f"river {n} house {n}"}) + "\n" for n in range(texts))
    )
    made(tmp_path / "few", Corpus(CorpusSpec.model_validate(few), tmp_path), [bert(small_encoder)])
    code, out, _ = look(tmp_path / "few", "--png", tmp_path / "few.png")
    assert code == 0
    assert f"{texts} rows × 32" in out
    assert (tmp_path / "few.png").stat().st_size > 10_000


def test_cache_whose_texts_were_not_counted_or_otherwise_is_shown_too(
    cache: CacheReader, tmp_path: Path, look: Look
) -> None:
    own = copy(cache.path, tmp_path / "own")
    for counts in ({}, {"web": {"seen": 70}}):
        change_manifest(own, lambda data, counts=counts: data.update(counts=counts))
        code, out, _ = look(own, "--png", tmp_path / "none.png")
        assert code == 0
        assert "how many texts each source gave was not recorded\n" in out
    counted = {f"source {number}": {"kept": number, "seen": 70} for number in range(12)}
    change_manifest(own, lambda data: data.update(counts=counted))
    code, out, _ = look(own, "--png", tmp_path / "some.png")
    assert code == 0
    assert re.search(r"source 11 +│ +16\.7% │ +11 │ +0 │ +0 ", out)
    assert min((tmp_path / f"{name}.png").stat().st_size for name in ("none", "some")) > 10_000


def test_command_shows_every_part_and_writes_the_picture(
    cache: CacheReader, tmp_path: Path, look: Look
) -> None:
    code, out, err = look(cache.path, "--png", tmp_path / "picture.png")
    assert code == 0
    assert err == f"drawn: {tmp_path / 'picture.png'}\n"
    for part in (
        *("Teachers", "Models", "Texts", "Lengths (56 rows)", "Norms of the raw vectors"),
        *("Similarities (all pairs of 56 rows)", "Agreement", "bert · lsa", "tokens: bert"),
        *("Sizes of the columns", "embedding", "On disk", "shards/", cache.identity),
    ):
        assert part in out
    code, out, err = look(cache.path, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts == json.loads(json.dumps(summarize(survey(cache))))
    assert facts["counts"] == cache.manifest.counts


def test_picture_that_cannot_be_written_is_one_line(
    cache: CacheReader, look: Look, tmp_path: Path
) -> None:
    code, out, err = look(cache.path, "--png", tmp_path / "no" / "p.png")
    assert (code, out) == (2, "")
    assert err == f"error: --png {tmp_path}/no/p.png: there is no folder {tmp_path}/no\n"
    code, out, err = look(cache.path, "--png", tmp_path)
    assert code == 2
    assert err.startswith(f"error: {tmp_path} cannot be written: ")
