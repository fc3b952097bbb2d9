"""What a build refuses, in which words, and that a refusal leaves every byte as it was."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import bert, contents, copy, corpus, lsa, made, make, write_corpus
from shard_files import shard_file
from small_models import change_weights

from data.corpus import Corpus
from teacher_cache.finish import check_new
from teacher_cache.format import CacheError, read_json, record_path
from teacher_cache.models import ModelError
from teacher_cache.ranks import Rank
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import Teacher


def everything(folder: Path) -> tuple[dict[str, bytes], set[Path]]:
    """Files with their bytes, and all there is, with folders."""
    return contents(folder), set(folder.rglob("*"))


def refused(message: str, cache: Path, texts: Corpus, teachers: list[Teacher]) -> None:
    before = everything(cache)
    with pytest.raises((CacheError, ModelError), match=message):
        make(cache, texts, teachers)
    assert everything(cache) == before


@pytest.fixture(params=["finished", "begun"])
def place(request: pytest.FixtureRequest, cache: CacheReader, tmp_path: Path) -> Path:
    """A folder with a corpus and its `cache`: a finished one, and one that lacks a shard."""
    place = copy(cache.path.parent, tmp_path / "place")
    if request.param == "begun":
        (place / "cache" / "manifest.json").unlink()
        shard_file(place / "cache", 2).unlink()
        record_path(place / "cache", 2).unlink()
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"planned from another corpus: corpus\.seed is None in the cache, 1 now"),
        ({"texts": 30}, r"corpus\.texts is 56 in the cache, 30 now"),
        ({"held_out": 0.1}, r"corpus\.held_out is 0\.2 in the cache, 0\.1 now"),
        ({"sources": [{"name": "web", "path": "web.jsonl"}]}, r"corpus\.sources is .*asked"),
        (
            {
                "sources": [
                    {"name": "web", "path": "other.jsonl", "weight": 2},
                    {"name": "asked", "path": "asked.jsonl"},
                ]
            },
            r"corpus\.sources\[0\]\.path is 'web\.jsonl' in the cache, 'other\.jsonl' now",
        ),
    ],
    ids=str,
)
def test_another_corpus_is_refused(
    change: dict[str, Any], message: str, place: Path, small_encoder: Path
) -> None:
    shutil.copy(place / "web.jsonl", place / "other.jsonl")
    teachers = [bert(small_encoder), lsa()]
    refused(message, place / "cache", corpus(place, **change), teachers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": {"default": "q: "}}, r"bert\.prompts\.default is '' in the cache, 'q: ' now"),
        ({"prompts": {"default": "", "web": "q: "}}, r"bert\.prompts\.web is None .* 'q: ' now"),
        ({"max_tokens": 24}, r"bert\.max_tokens is 48 in the cache, 24 now"),
        ({"dtype": "bfloat16"}, r"bert\.dtype is 'float32' in the cache, 'bfloat16' now"),
        ({"width": 16}, r"bert\.width is 32 in the cache, 16 now"),
    ],
    ids=str,
)
def test_another_setting_of_a_teacher_is_refused(
    change: dict[str, Any], message: str, place: Path, small_encoder: Path
) -> None:
    teachers = [bert(small_encoder, **change), lsa()]
    refused(message, place / "cache", corpus(place), teachers)


def test_other_teachers_are_refused_before_one_is_fitted(place: Path, small_encoder: Path) -> None:
    of_cache = [bert(small_encoder), lsa()]
    other = lsa(name="other", width=3)
    for asked in (of_cache[:1], of_cache[::-1], [*of_cache, other], [of_cache[0], other]):
        names = ", ".join(teacher.name for teacher in asked)
        message = f"is built with the teachers bert, lsa, not {names}; build into another"
        refused(message, place / "cache", corpus(place), asked)


def test_another_setting_of_a_fitted_teacher_is_refused(place: Path, small_encoder: Path) -> None:
    message = r"lsa\.width is 8 in the cache, 5 now"
    refused(message, place / "cache", corpus(place), [bert(small_encoder), lsa(width=5)])


def test_fitted_teacher_under_the_name_of_another_is_refused(
    place: Path, small_encoder: Path
) -> None:
    message = r"bert\.encoder is 'sentence-transformers' in the cache, 'tfidf-svd' now"
    teachers = [lsa(name="bert", width=32), lsa()]
    refused(message, place / "cache", corpus(place), teachers)


def test_one_changed_weight_is_another_teacher(
    place: Path, small_encoder: Path, tmp_path: Path
) -> None:
    changed = copy(small_encoder, tmp_path / "changed")
    weight = "encoder.layer.2.output.dense.weight"
    change_weights(changed, weight, lambda tensor: tensor.view(-1)[0].add_(1e-3))
    message = r"begun with another teacher: bert\.fingerprint is '"
    refused(message, place / "cache", corpus(place), [bert(changed), lsa()])
    # The same files elsewhere are the same teacher.
    same = copy(small_encoder, tmp_path / "same")
    assert make(place / "cache", corpus(place), [bert(same), lsa()])


def test_model_that_is_gone_is_refused(place: Path) -> None:
    refused("there is no folder", place / "cache", corpus(place), [bert(place / "gone"), lsa()])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A corpus, and no cache yet."""
    write_corpus(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["notes.txt", "shards/00000.arrow", ".hidden", "manifest.json"])
def test_folder_that_is_not_a_cache_is_refused(name: str, new: Path) -> None:
    path = new / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    message = rf"cache is not a cache: it has no plan\.json but it holds {name.split('/')[0]}"
    refused(message, new / "cache", corpus(new), [lsa()])


def test_folder_with_a_plan_of_its_own_is_refused(new: Path) -> None:
    (new / "cache" / "plan").mkdir(parents=True)
    (new / "cache" / "plan" / "floor.txt").write_text("mine")
    (new / "cache" / "house.txt").write_text("mine")
    refused(r"it holds house\.txt", new / "cache", corpus(new), [lsa()])


def test_file_in_place_of_the_folder_is_refused(new: Path) -> None:
    (new / "cache").write_text("mine")
    with pytest.raises(CacheError, match="cache is a file, not a folder"):
        make(new / "cache", corpus(new), [lsa()])
    assert (new / "cache").read_text() == "mine"


def test_empty_folder_will_do(new: Path) -> None:
    (new / "cache").mkdir()
    assert made(new / "cache", corpus(new), [lsa()]).rows == 56


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_teachers_must_be_some_of_different_names(names: list[str], new: Path) -> None:
    with pytest.raises(CacheError, match="expected one or more teachers of different names"):
        make(new / "cache", corpus(new), [lsa(name=name) for name in names])
    assert not (new / "cache").exists()


def test_prompt_for_a_source_that_is_not_there_is_refused(new: Path) -> None:
    teacher = lsa(prompts={"askd": "q: "})
    with pytest.raises(CacheError, match=r"prompt for the source 'askd'.* it has web, asked"):
        make(new / "cache", corpus(new), [teacher])
    assert not (new / "cache").exists()


def test_pooled_state_that_a_teacher_has_not_is_refused_before_the_plan(new: Path) -> None:
    refused("'lsa': keep_pooled needs a body", new / "cache", corpus(new), [lsa(keep_pooled=True)])
    assert not (new / "cache").exists()


def test_corpus_with_nothing_to_train_on_is_refused(new: Path) -> None:
    (new / "one.txt").write_text("kept apart\n")
    source = {"name": "one", "path": "one.txt"}
    for seed in range(99):
        texts = corpus(new, sources=[source], held_out=0.5, seed=seed)
        if [text.held_out for text in texts] == [True]:
            break
    with pytest.raises(CacheError, match="gives 1 texts, all of them held out"):
        make(new / "cache", texts, [lsa()])
    assert not (new / "cache" / "plan.json").exists()


def test_damaged_plan_is_refused_by_the_build_that_reads_it(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    place = copy(cache.path.parent, tmp_path / "place")
    shard_file(place / "cache", 1).unlink()
    plan = place / "cache" / "plan" / "00001.arrow"
    expected = read_json(place / "cache" / "plan.json")["shards"][1]["checksum"]
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    teachers = [bert(small_encoder), lsa()]
    message = f"{plan} has checksum .* but the plan says {expected}"
    refused(message, place / "cache", corpus(place), teachers)
    plan.unlink()
    refused(f"{plan} is missing", place / "cache", corpus(place), teachers)


def test_ranks_come_from_the_launchers_environment() -> None:
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Rank.from_environment(launched) == Rank(3, 4, 1)
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}
    assert Rank.from_environment(slurm) == Rank(5, 8, 2)
    assert Rank.from_environment({**slurm, **launched}) == Rank(3, 4, 1)
    assert Rank.from_environment({"RANK": "3"}) == Rank(0, 1, 0)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "")])
def test_rank_of_no_possible_job_is_refused(rank: str, world: str) -> None:
    with pytest.raises(CacheError, match=f"expected RANK to be a number .* found RANK={rank}"):
        Rank.from_environment({"RANK": rank, "WORLD_SIZE": world})


def test_folder_that_another_builder_planned_a_moment_ago_is_not_refused(
    cache: CacheReader,
) -> None:
    """It had no plan when this one looked: now it has one, and more besides."""
    check_new(cache.path)
