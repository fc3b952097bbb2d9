from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import BertProcessing, ByteLevel, Sequence, TemplateProcessing
from transformers import AutoModel, AutoTokenizer

from student.body import body_layers, most_positions
from student.model import Student, create, load
from student.spec import StudentError, StudentSpec
from student.stages import StageError
from student.tokens import TextTokenizer

TEXTS = ["a", "the river in the morning", "", "seven clocks and one green boat " * 3, "music"]
SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4}, max_tokens=24)


@pytest.fixture(scope="module")
def student(small_encoder: Path) -> Student:
    return create(SPEC, small_encoder, target_width=10, seed=0).eval()


@torch.inference_mode()
def plain_mean(folder: Path, text: str, layers: list[int] | None = None) -> np.ndarray:
    """The mean of the last states of one text, unpadded, in float64, layer by layer."""
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval().double()
    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=24)["input_ids"]
    if layers is not None:
        kept = [model.encoder.layer[i] for i in layers]
        model.encoder.layer = torch.nn.ModuleList(kept)
    states = model(input_ids=torch.tensor([ids])).last_hidden_state
    return states[0].mean(0).numpy()


@torch.inference_mode()
def test_pooled_is_the_mean_over_each_texts_own_tokens(
    student: Student, small_encoder: Path
) -> None:
    pooled = student.pooled(student.batch(TEXTS, chunks=2)).numpy()
    expected = np.stack([plain_mean(small_encoder, text) for text in TEXTS])
    assert np.abs(pooled - expected).max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 9])
def test_chunks_change_neither_vectors_nor_their_order(student: Student, chunks: int) -> None:
    one_by_one = torch.cat([student.pooled(student.batch([text])) for text in TEXTS])
    together = student.pooled(student.batch(TEXTS, chunks=chunks))
    assert torch.allclose(together, one_by_one, atol=1e-6)


@torch.inference_mode()
def test_kept_layers_are_those_of_the_original(small_encoder: Path) -> None:
    spec = SPEC.model_copy(update={"layers": (0, 2)})
    student = create(spec, small_encoder, target_width=10, seed=0).eval()
    pooled = student.pooled(student.batch(TEXTS[:2])).numpy()
    expected = np.stack([plain_mean(small_encoder, text, [0, 2]) for text in TEXTS[:2]])
    assert np.abs(pooled - expected).max() < 1e-5
    assert student.text.config.num_hidden_layers == 2


def test_transformer_is_found_inside_a_sentence_transformers_folder(
    small_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_encoder, tmp_path / "model" / "0_Transformer")
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    nested = create(SPEC, tmp_path / "model", target_width=10, seed=0).state_dict()
    plain = create(SPEC, small_encoder, target_width=10, seed=0).state_dict()
    assert all(torch.equal(nested[name], plain[name]) for name in plain)


@pytest.mark.parametrize("layers", [(0, 3), (-1,), ()])
def test_layer_that_is_not_there_is_refused(small_encoder: Path, layers: tuple[int, ...]) -> None:
    spec = SPEC.model_copy(update={"layers": layers})
    with pytest.raises(StudentError, match="the model has layers 0 to 2"):
        create(spec, small_encoder, target_width=10, seed=0)


@torch.inference_mode()
def test_heads_are_linear_in_the_pooled_state_and_stay_fp32_under_autocast(
    student: Student,
) -> None:
    batch = student.batch(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = student(batch, ("fc1", "fc3"))
        pooled = student.pooled(batch)
    assert list(vectors) == ["fc1", "fc3"]
    for name, width in (("fc1", 10), ("fc3", 4)):
        head = student.heads[name]
        expected = pooled.double() @ head.weight.double().T + head.bias.double()
        assert vectors[name].dtype == torch.float32
        assert vectors[name].shape == (len(TEXTS), width)
        assert (vectors[name] - expected).abs().max() < 1e-5


@torch.inference_mode()
def test_saved_student_loads_bit_for_bit(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path / "saved")
    again = load(tmp_path / "saved").eval()
    assert again.spec == student.spec
    assert again.head_widths == {"fc1": 10, "fc2": 6, "fc3": 4}
    before, after = student.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch = student.batch(TEXTS)
    assert torch.equal(student.pooled(batch), again.pooled(again.batch(TEXTS)))


def test_equal_seeds_give_equal_heads(small_encoder: Path) -> None:
    heads = [create(SPEC, small_encoder, 10, seed).heads["fc1"].weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_groups_name_the_parameters_they_should(student: Student) -> None:
    text = {name for name in dict(student.named_parameters()) if name.startswith("text.")}
    pooler = {name for name in text if name.startswith("text.pooler.")}
    assert pooler, "the small encoder has a pooler, which must not train"
    assert set(student.parameters_of(["text"])) == text - pooler
    assert set(student.parameters_of(["fc2"])) == {"heads.fc2.weight", "heads.fc2.bias"}
    assert set(student.parameters_of(["heads"])) == {
        f"heads.fc{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")
    }
    last = {name for name in text if ".layer.2." in name}
    assert set(student.parameters_of(["layers[-1]"])) == last
    assert set(student.parameters_of(["layers[2:]"])) == last
    both = {name for name in text if ".layer.1." in name or ".layer.2." in name}
    assert set(student.parameters_of(["layers[-2:]", "layers[1]"])) == both


def test_what_is_frozen_gets_no_gradient_and_no_graph(small_encoder: Path) -> None:
    student = create(SPEC, small_encoder, target_width=10, seed=0)
    batch = student.batch(TEXTS)
    trained = student.train_only(["fc1"])
    assert set(trained) == {"heads.fc1.weight", "heads.fc1.bias"}
    assert not student.pooled(batch).requires_grad
    student(batch, ["fc1"])["fc1"].sum().backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == set(trained)

    trained = student.train_only(["layers[-1]"])
    assert student.pooled(batch).requires_grad
    below = student.text.encoder.layer[1](torch.zeros(1, 2, 32))
    assert not below.requires_grad


@pytest.mark.parametrize(
    "group",
    ["fc9", "layers[3]", "layers[5:]", "layers[]", "layers[0-1]", "layers[-]", "vision", "layer"],
)
def test_group_that_matches_nothing_is_refused(student: Student, group: str) -> None:
    with pytest.raises(StageError):
        student.parameters_of([group])


@pytest.mark.parametrize(("padding", "longest"), [(None, 20), (1, 18)])
def test_a_body_reads_as_many_tokens_as_it_has_positions(padding: int | None, longest: int) -> None:
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    sizes = {
        "vocab_size": 30, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": 20,
    }  # fmt: skip
    body = (
        BertModel(BertConfig(**sizes))
        if padding is None
        else RobertaModel(RobertaConfig(**sizes, pad_token_id=padding))
    )
    assert most_positions(body) == longest
    body(input_ids=torch.full((1, longest), 5))
    with pytest.raises((RuntimeError, IndexError)):
        body(input_ids=torch.full((1, longest + 1), 5))


def test_a_layer_is_kept_once() -> None:
    with pytest.raises(ValidationError, match="a layer can be kept once, found"):
        StudentSpec(layers=(0, 0, 2))


def test_bodies_are_bidirectional_whatever_their_folder_says(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2Model(config).save_pretrained(tmp_path)
    write_word_tokenizer(tmp_path, {"add_eos_token": False})
    student = create(SPEC, tmp_path, target_width=4, seed=0).eval()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.inference_mode():
        states = student.text(input_ids=ids).last_hidden_state
    assert not torch.allclose(states[0, 0], states[1, 0], atol=1e-4)
    assert len(body_layers(student.text)) == 2


def test_eos_that_the_folder_asks_for_is_appended_inside_the_limit(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, {"add_eos_token": True, "eos_token": "<end>"})
    tokenizer = TextTokenizer(tmp_path, max_tokens=3)
    end = tokenizer.tokenizer.token_to_id("<end>")
    assert [len(ids) for ids in tokenizer.encode(["one", "one two", "one two three four"])] == [
        2,
        3,
        3,
    ]
    assert all(ids[-1] == end for ids in tokenizer.encode(["one", "one two three four", ""]))
    tokenizer.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("one two")["input_ids"] == tokenizer.encode(["one two"])[0]


@pytest.mark.parametrize(
    ("old", "before", "behind"),
    [
        (TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)]), [0], []),
        (
            Sequence(
                [
                    ByteLevel(),
                    TemplateProcessing(
                        single="<unk> four $A two",
                        special_tokens=[("<unk>", 0), ("four", 5), ("two", 3)],
                    ),
                ]
            ),
            [0, 5],
            [3],
        ),
        (BertProcessing(("two", 3), ("four", 5)), [5], [3]),
        (TemplateProcessing(single="<unk> $A <end>", special_tokens=[("<unk>", 0), ("<end>", 1)]),
         [0], []),
    ],
)  # fmt: skip
def test_eos_comes_once_and_behind_what_the_file_puts_around_a_text(
    tmp_path: Path, old: Any, before: list[int], behind: list[int]
) -> None:
    write_word_tokenizer(tmp_path, {"add_eos_token": True, "eos_token": "<end>"}, around=old)
    tokenizer = TextTokenizer(tmp_path, max_tokens=6)
    assert tokenizer.encode(["one three"]) == [[*before, 2, 4, *behind, 1]]
    (cut,) = tokenizer.encode(["one " * 9])
    assert (len(cut), cut[: len(before)], cut[-1]) == (6, before, 1)
    tokenizer.save(tmp_path / "saved")
    assert TextTokenizer(tmp_path / "saved", 6).encode(["one"]) == tokenizer.encode(["one"])


def test_weights_that_lack_a_tensor_are_refused_by_its_name(
    tmp_path: Path, small_encoder: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(small_encoder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudentError, match=r"lack 1 tensors, the first is encoder\.layer\.1\.out"):
        create(SPEC, folder, 10, 0)


def test_folder_without_a_model_or_a_tokenizer_is_refused(
    tmp_path: Path, small_encoder: Path
) -> None:
    with pytest.raises(StudentError, match="holds no text encoder"):
        create(SPEC, tmp_path, 10, 0)
    folder = tmp_path / "bare"
    shutil.copytree(small_encoder, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StudentError, match=r"no tokenizer\.json"):
        create(SPEC, folder, 10, 0)
    with pytest.raises(StudentError, match="holds no student"):
        load(tmp_path)


def write_word_tokenizer(folder: Path, config: dict[str, object], around: Any = None) -> None:
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["<unk>", "<end>", "one", "two", "three", "four"]
    model = WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<end>"])
    if around is not None:
        tokenizer.post_processor = around
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
