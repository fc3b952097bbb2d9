"""A teacher's pooled state: what is kept is what a student that starts as its body computes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import edit_json, read_weights, write_stella, write_weights
from jobs import bert, contents, copy, corpus, lsa, made, write_corpus
from numpy.typing import NDArray

from data.corpus import Corpus
from student.model import create
from student.spec import StudentSpec
from teacher_cache.encoders import loading
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.format import CacheError
from teacher_cache.models import body_fingerprint
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import Teacher, TeacherError, TeacherSpec, resolve
from teacher_cache.verify import verify
from teacher_cache.writer import Texts, write_shard

PROMPT = "query: "
LONGEST = 48
"""In tokens; some of the texts are longer."""


def stella(folder: Path, **changes: Any) -> Teacher:
    spec = {"name": "stella-en-1.5b-v5", "path": str(folder), "width": 40, "dtype": "float32"}
    return resolve(TeacherSpec.model_validate(spec | changes))


@pytest.fixture(scope="module")
def stella_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stella(tmp_path_factory.mktemp("stella"))


@pytest.fixture(params=["stella", "bert"])
def keeper(request: pytest.FixtureRequest, stella_folder: Path, small_encoder: Path) -> Teacher:
    """A teacher that keeps its pooled state, with a prompt before every text."""
    changes = {"keep_pooled": True, "prompts": {"default": PROMPT}, "max_tokens": LONGEST}
    if request.param == "stella":
        return stella(stella_folder, **changes)
    return bert(small_encoder, **changes)


def folder_of(teacher: Teacher) -> Path:
    assert teacher.repository is not None
    return Path(teacher.repository)


@pytest.fixture
def texts(tmp_path: Path) -> Corpus:
    write_corpus(tmp_path)
    return corpus(tmp_path)


def student_states(teacher: Teacher, texts: list[str]) -> NDArray[np.float32]:
    spec = StudentSpec(init=str(teacher.repository), prompt=PROMPT, max_tokens=LONGEST)
    student = create(spec, folder_of(teacher), target_width=8, seed=0)
    with torch.inference_mode():
        return student.pooled(student.batch(texts)).numpy()


def test_kept_states_are_what_the_frozen_student_computes(
    keeper: Teacher, texts: Corpus, tmp_path: Path
) -> None:
    made(tmp_path / "cache", texts, [lsa(), keeper])
    reader = CacheReader(tmp_path / "cache")
    kept = reader.manifest.pooled
    assert kept is not None
    assert kept.teacher == keeper.name
    assert kept.body == body_fingerprint(folder_of(keeper))
    expected = student_states(keeper, reader.texts(range(len(reader))))
    found = reader.pooled(range(len(reader)))
    assert (found.dtype, found.shape) == (np.float16, (len(reader), kept.width))
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-10, atol=2e-5)
    assert np.linalg.norm(expected, axis=1).std() > 1e-3, "nothing was normalised"
    assert verify(reader) == []
    tokens = [shard for n in range(4) for shard in reader.shard(n).column("tokens").to_pylist()]
    assert max(count for _, count in tokens) == LONGEST
    np.testing.assert_array_equal(reader.pooled([9, 3, 9]), found[[9, 3, 9]])


def test_keeping_changes_no_vector(keeper: Teacher, texts: Corpus, tmp_path: Path) -> None:
    made(tmp_path / "kept", texts, [keeper, lsa()])
    plain = replace(keeper, keep_pooled=False)
    made(tmp_path / "plain", texts, [plain, lsa()])
    kept, without = CacheReader(tmp_path / "kept"), CacheReader(tmp_path / "plain")
    rows = range(len(kept))
    np.testing.assert_array_equal(kept.vectors(rows), without.vectors(rows))
    assert kept.blocks() == without.blocks()
    assert kept.identity != without.identity
    with pytest.raises(CacheError, match=r"plain keeps no pooled state; .* --keep-pooled TEACHER"):
        without.pooled([0])


def test_build_goes_on_only_with_the_state_it_began_with(
    texts: Corpus, small_encoder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    keeping, plain = bert(small_encoder, keep_pooled=True), bert(small_encoder)
    made(cache, texts, [keeping])
    whole = contents(cache)
    with pytest.raises(CacheError, match="keeps the pooled state of bert, now that of none is"):
        made(cache, texts, [plain])
    again = copy(cache, tmp_path / "again")
    (again / "manifest.json").unlink()
    for path in (again / "shards").glob("00001*"):
        path.unlink()
    made(again, texts, [keeping])
    assert contents(again) == whole


def test_teachers_that_pool_otherwise_cannot_keep_a_state(
    texts: Corpus, small_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match="pooled state of one teacher, asked for bert and lsa"):
        made(
            tmp_path / "cache",
            texts,
            [bert(small_encoder, keep_pooled=True), lsa(keep_pooled=True)],
        )
    for teacher in (
        lsa(keep_pooled=True),
        resolve(TeacherSpec(name="nv-embed-v2", keep_pooled=True)),
    ):
        with pytest.raises(TeacherError, match=f"{teacher.encoder} pools otherwise"):
            loading.inspect_files(teacher, tmp_path)
    own = shutil.copytree(small_encoder, tmp_path / "own")
    edit_json(own / "1_Pooling" / "config.json", pooling_mode="cls")
    with pytest.raises(TeacherError, match="keep_pooled needs a body and then mean pooling"):
        made(tmp_path / "cache", texts, [bert(own, keep_pooled=True)])


def test_state_beyond_float16_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    states = np.ones((2, 3), np.float32)
    states[1, 2] = 70_000
    shard = Texts([b"a" * 16, b"b" * 16], ["one", "two"], ["web", "web"])
    encoded = Encoded(np.ones((2, 4), np.float32), np.ones(2, np.int32), states)
    with pytest.raises(CacheError, match=f"pooled state of text {(b'b' * 16).hex()} does not fit"):
        write_shard(tmp_path, 0, identity="i", texts=shard, blocks=[("big", encoded)])
    assert not list(tmp_path.iterdir())


def test_body_fingerprint_sees_the_transformer_and_no_head(
    stella_folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(stella_folder, tmp_path / "own")
    before = body_fingerprint(own)
    edit_json(own / "2_Dense_40" / "config.json", note="changed")
    edit_json(own / "1_Pooling" / "config.json", note="changed")
    assert body_fingerprint(own) == before == body_fingerprint(stella_folder)
    seen = {before}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        edit_json(own / name, note="changed")
        seen.add(body_fingerprint(own))
    weights = read_weights(own)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    write_weights(own, weights)
    seen.add(body_fingerprint(own))
    assert len(seen) == 5
