"""Golden vectors: what the original gave holds every later teacher, and no fault comes through."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import edit_json
from golden_files import (
    NAMES,
    agreement,
    disturb_layer,
    load,
    teacher,
    write_foreign,
    write_goldens,
    write_teachers,
)
from jobs import contents, corpus, write_corpus
from numpy.typing import NDArray
from safetensors.numpy import load_file

from teacher_cache import golden as golden_module
from teacher_cache.build import Options, build
from teacher_cache.encoders import body as bodies
from teacher_cache.encoders.tokens import EosWrittenTokenizer
from teacher_cache.format import Manifest, checksum
from teacher_cache.golden import GoldenError, read_goldens, write_golden
from teacher_cache.golden_texts import BARE_PROMPT, from_lines, golden_texts, to_lines
from teacher_cache.teachers import Teacher, TeacherError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def goldens(folders: dict[str, Path]) -> dict[str, Path]:
    return write_goldens(folders)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(name: str, folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the teacher's folder, to break."""
    return shutil.copytree(folders[name], tmp_path / "model")


# The texts


def test_half_of_64_different_texts_stand_behind_a_prompt() -> None:
    texts = golden_texts()
    assert len(set(texts)) == len({text.text for text in texts}) == 64
    assert sum(bool(text.prompt) for text in texts) == 32
    assert {text.prompt[-1:] for text in texts} == {"", " ", ":"}
    assert BARE_PROMPT[-1] != " "


def test_the_texts_are_the_same_everywhere() -> None:
    assert checksum(to_lines(golden_texts()).encode()) == "4408aec4e54e917ad8468fa447a59522"


def test_the_texts_hold_what_tokenizers_disagree_about() -> None:
    everything = "".join(text.text for text in golden_texts())
    scripts = ("ź", "река", "πο", "نهر", "נהר", "नदी", "নদী", "น้ำ", "მდ", "河", "が", "겨", "𐌰")
    special = ("</s>", "<s>", "<unk>", "<|endoftext|>", "[SEP]", "\n\n", "\t", "\u200d", "🙂")
    for found in scripts + special:
        assert found in everything
    assert any(text.text == "" for text in golden_texts())
    assert any(text.text.startswith(" ") for text in golden_texts())
    assert any(text.text.endswith("\n") for text in golden_texts())


def test_the_texts_have_one_to_512_tokens_and_more(folders: dict[str, Path]) -> None:
    texts = [t.text for t in golden_texts() if not t.prompt]
    row = replace(teacher(NAMES[0], folders[NAMES[0]]), max_tokens=None)
    lengths = load(row).prepare(texts, [""] * len(texts)).lengths
    assert lengths.min() == 2
    assert sum(lengths > 512) >= 3
    assert all(np.histogram(lengths, [2, 4, 8, 16, 32, 64, 128, 256, 512])[0])


def test_texts_are_read_back_from_plain_lines() -> None:
    lines = to_lines(golden_texts())
    assert lines.isascii()
    assert len(lines.splitlines()) == 64
    assert from_lines(lines) == golden_texts()


# Agreement


def test_a_teacher_gives_the_vectors_of_a_foreign_file(
    name: str, folders: dict[str, Path], goldens: dict[str, Path]
) -> None:
    found = agreement(teacher(name, folders[name]), goldens[name])
    assert found.failure is None
    assert found.cosines.min() > 1 - 1e-6


def test_what_a_teacher_writes_it_gives_again(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    row = teacher(name, folders[name])
    write_golden(tmp_path / "golden", row, device="cpu")
    found = agreement(row, tmp_path / "golden")
    assert found.cosines.min() > 1 - 1e-9
    assert found.golden.texts == golden_texts()
    assert found.golden.notes["dtype"] == "float32"
    assert len(found.golden.notes["fingerprint"]) == 32


def test_without_a_limit_of_tokens_a_file_says_so(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_module, "golden_texts", lambda: golden_texts()[:8])
    row = replace(teacher(NAMES[0], folders[NAMES[0]]), max_tokens=None)
    write_golden(tmp_path / "golden", row, device="cpu")
    (golden,) = read_goldens([tmp_path / "golden"], [row])
    assert (golden.max_tokens, len(golden.texts)) == (None, 8)


def test_half_precision_stays_within_what_is_allowed(
    name: str, folders: dict[str, Path], goldens: dict[str, Path]
) -> None:
    found = agreement(teacher(name, folders[name], dtype="bfloat16"), goldens[name])
    assert found.failure is None
    assert found.cosines.min() < 1 - 1e-6


# Faults: each must move some text by far more than what rounding is allowed.


def causal(own: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        bodies,
        "token_states",
        lambda body, ids, mask: body(ids, attention_mask=mask, is_causal=True).last_hidden_state,
    )


def without_eos(own: Path, patch: pytest.MonkeyPatch) -> None:
    if (own / "tokenizer_config.json").exists():
        edit_json(own / "tokenizer_config.json", add_eos_token=None)
    patch.setattr(
        EosWrittenTokenizer, "ids", lambda self, texts: without_last(self._tokenizer, texts)
    )


def without_last(tokenizer: Any, texts: list[str]) -> list[NDArray[np.int32]]:
    return [np.array(e.ids, np.int32) for e in tokenizer.encode_batch_fast(texts)]


def other_layer(own: Path, patch: pytest.MonkeyPatch) -> None:
    disturb_layer(own)


@pytest.mark.parametrize("fault", [causal, without_eos, other_layer])
def test_a_fault_of_any_family_is_refused(
    name: str,
    own: Path,
    goldens: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    fault(own, monkeypatch)
    found = agreement(teacher(name, own), goldens[name])
    assert found.failure is not None
    assert found.cosines.min() < 0.998


def test_another_dense_head_is_refused(
    folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[NAMES[0]], tmp_path / "model")
    shutil.copy(folder / "2_Dense/model.safetensors", folder / "2_Dense_40/model.safetensors")
    found = agreement(teacher(NAMES[0], folder), goldens[NAMES[0]])
    assert "64 of 64 cosines are under 0.9995 (32 of them behind a prompt)" in str(found.failure)


def test_a_prompt_that_is_pooled_from_another_token_is_refused(
    folders: dict[str, Path], goldens: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = EosWrittenTokenizer.count
    monkeypatch.setattr(
        EosWrittenTokenizer, "count", lambda self, prompt: count(self, prompt) + bool(prompt)
    )
    found = agreement(teacher(NAMES[1], folders[NAMES[1]]), goldens[NAMES[1]])
    assert re.search(r"(\d+) of 64 cosines .* \(\1 of them behind a prompt\)", str(found.failure))


def test_vectors_that_are_no_numbers_are_refused(
    folders: dict[str, Path], goldens: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = bodies.masked_mean
    monkeypatch.setattr(bodies, "masked_mean", lambda *given: mean(*given) * torch.nan)
    found = agreement(teacher(NAMES[0], folders[NAMES[0]]), goldens[NAMES[0]])
    assert "64 of 64 cosines" in str(found.failure)
    cosines = np.where(np.arange(64) == 5, np.nan, 0.5)
    assert "the lowest is nan, of text 5 " in str(replace(found, cosines=cosines).failure)


def test_a_failure_names_the_worst_text_and_its_cosine(
    folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    row = teacher(NAMES[1], folders[NAMES[1]])
    vectors = load_file(goldens[NAMES[1]])["vectors"]
    vectors[17] = vectors[17][::-1]
    found = agreement(row, write_foreign(tmp_path / "turned", row, vectors))
    assert re.fullmatch(
        r"teacher 'nv-embed-v2' does not give the vectors of \S+turned: 1 of 64 cosines are under "
        r"0\.9995 \(1 of them behind a prompt\); the lowest is -?0\.\d{6}, of text 17 "
        r'"3\.14159 .*", \d+ tokens',
        str(found.failure),
    )


def test_a_reference_is_taken_once(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "golden"
    path.write_text("taken with care")
    with pytest.raises(GoldenError, match="golden exists; a reference is taken once"):
        write_golden(path, teacher(NAMES[0], folders[NAMES[0]]), device="cpu")
    assert path.read_text() == "taken with care"


def test_no_reference_is_taken_of_a_teacher_that_fails_the_probe(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal(tmp_path, monkeypatch)
    with pytest.raises(TeacherError, match="its attention is causal"):
        write_golden(tmp_path / "golden", teacher(NAMES[0], folders[NAMES[0]]), device="cpu")
    assert not (tmp_path / "golden").exists()


# A build


def built(cache: Path, row: Teacher, texts: Path, goldens: tuple[Path, ...]) -> Manifest | None:
    options = Options(rows_per_shard=16, goldens=goldens)
    return build(cache, corpus(texts), [row], options=options)


def test_a_build_is_the_same_with_and_without_a_golden_file(
    name: str, folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    row = teacher(name, folders[name])
    for cache, given in (("held", (goldens[name],)), ("free", ())):
        assert built(tmp_path / cache, row, tmp_path, given)
    assert contents(tmp_path / "held") == contents(tmp_path / "free")


def test_a_build_writes_no_shard_until_the_teacher_agrees(
    name: str, own: Path, folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    disturb_layer(own)
    cache = tmp_path / "cache"
    with pytest.raises(GoldenError, match=r"does not give the vectors .*; no shard was written$"):
        built(cache, teacher(name, own), tmp_path, (goldens[name],))
    assert {path.split("/")[0] for path in contents(cache)} == {"plan", "plan.json"}
    assert built(cache, teacher(name, folders[name]), tmp_path, (goldens[name],))


def test_a_build_refuses_a_golden_file_of_none_of_its_teachers(
    folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    row = teacher(NAMES[0], folders[NAMES[0]])
    with pytest.raises(GoldenError, match=r"of teacher 'nv-embed-v2', not of 'stella-en-1\.5b-v5'"):
        built(tmp_path / "cache", row, tmp_path, (goldens[NAMES[1]],))
    assert not (tmp_path / "cache").exists()
