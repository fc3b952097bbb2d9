"""The yardstick of quality: what it asks, how it scores, and what it does not do again."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_caches import write_cache
from small_corpora import PARAGRAPHS, SPLITS, SYNSETS, write_corpora
from yardstick import ours, theirs
from yardstick.arms import ARMS, WIDTHS, code_digest, lengths_of, recipe_of
from yardstick.budget import Cost, mean_cost, steps_that_fill, work_of
from yardstick.caches import Material, prepare
from yardstick.ledger import Job, Ledger
from yardstick.measure import LONG, measure, principal, with_principal
from yardstick.pool import Pool
from yardstick.shortlist import shortlist
from yardstick.summary import Finding, Setting, report
from yardstick.texts import Texts, read, split_of
from yardstick.tried import tried
from yardstick.tuning import FIRST, LADDER, best_rate, next_rates
from yardstick.work import remembering

from student.encoding import FloatArray, unit
from student.encoding import encode as encode_by
from student.model import POOLED, create
from student.spec import StudentSpec
from teacher_cache.finish import silent
from teacher_cache.reader import CacheReader

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def texts(corpora: Path) -> Texts:
    return read(corpora, queries=40, dev_queries=20)


@pytest.fixture(scope="module")
def material(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    work = tmp_path_factory.mktemp("work")
    return prepare(work, corpora, texts=240, queries=40, dev_queries=20, phase=silent)


def test_definition_and_examples_of_a_synset_stay_on_one_side(texts: Texts) -> None:
    trained = {text for group in texts.groups for text in group}
    asked = {
        which: {text for task in tasks for text in task.texts}
        for which, tasks in texts.tasks.items()
    }
    splits = {which: [s for s in SYNSETS if split_of(s) == which] for which in ("dev", "test")}
    assert all(len(found) > 3 for found in splits.values())
    for which, found in splits.items():
        for synset in found:
            own = {synset["definition"], *synset["examples"]}
            assert not own & trained
            assert {synset["definition"], synset["examples"][0]} <= asked[which]
    assert not asked["dev"] & asked["test"]
    for synset in SYNSETS:
        if split_of(synset) == "train":
            assert [synset["definition"], *synset["examples"]] in texts.groups


def test_split_sentences_are_never_trained_on(tmp_path: Path) -> None:
    """Not even where a book has the very words."""
    leak = SPLITS[0]["simple"][0]
    paragraphs = [*PARAGRAPHS, leak.upper()]
    write_corpora(tmp_path, paragraphs=paragraphs)
    texts = read(tmp_path, queries=len(SPLITS), dev_queries=0)
    trained = {text.casefold() for group in texts.groups for text in group}
    assert not trained & {half.casefold() for row in SPLITS for half in row["simple"]}
    (split, *_) = texts.tasks["test"]
    assert leak in split.queries
    halves = {tuple(row["simple"]) for row in SPLITS}
    assert set(zip(split.queries, split.documents, strict=True)) <= halves


def test_texts_are_the_same_in_whatever_order_the_corpora_are(texts: Texts, tmp_path: Path) -> None:
    write_corpora(tmp_path, synsets=SYNSETS[::-1], paragraphs=PARAGRAPHS[::-1])
    assert read(tmp_path, queries=40, dev_queries=20) == texts
    assert texts.count == sum(map(len, texts.groups)) > 300


def test_missing_corpus_is_named(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    (tmp_path / "oewn" / "oewn.jsonl.gz").unlink()
    with pytest.raises(SystemExit, match=r"has no oewn/oewn\.jsonl\.gz"):
        read(tmp_path, queries=3, dev_queries=3)


def test_steps_fill_the_budget_and_keep_their_proportions() -> None:
    costs = {"1": Cost(3.0, 0.1), "2": Cost(0.0, 0.9), "3": Cost(2.0, 0.5)}
    lengths = {"1": 4000, "2": 7000, "3": 2200}
    steps = steps_that_fill(300, costs, lengths)
    assert 300 - sum(cost.step for cost in costs.values()) < work_of(costs, steps) <= 300
    shares = [steps[stage] / lengths[stage] for stage in lengths]
    assert max(shares) - min(shares) < 1 / 2200
    assert steps_that_fill(5.01, costs, lengths) == {"1": 1, "2": 1, "3": 1}
    with pytest.raises(SystemExit, match=r"solving the heads takes 5"):
        steps_that_fill(4, costs, lengths)


def test_a_cost_is_the_mean_of_what_was_timed() -> None:
    assert mean_cost([Cost(3, 0.2), Cost(1, 0.4)]) == Cost(2, pytest.approx(0.3))


def test_rates_are_tried_until_the_best_has_neighbours() -> None:
    assert next_rates({}, 1e-4) == (1e-4, *FIRST)
    assert next_rates(dict(zip(FIRST, (0.1, 0.3, 0.2), strict=True)), 1e-4) == ()
    scores = dict(zip(FIRST, (0.1, 0.2, 0.3), strict=True))
    assert next_rates(scores, 1e-4) == (LADDER[5],)
    assert next_rates({**scores, LADDER[5]: 0.4}, 1e-4) == (LADDER[6],)
    assert next_rates({**scores, LADDER[5]: 0.4, LADDER[6]: 0.5}, 1e-4) == ()
    assert next_rates({7e-4: 0.5, **scores}, 7e-4) == ()
    assert next_rates({1e-4: 0.5, **scores}, 1e-4) == (LADDER[0],)
    assert best_rate({1e-3: 0.5, 1e-4: 0.5, 1e-2: 0.1}) == 1e-4


def test_a_finished_job_is_not_done_again(tmp_path: Path) -> None:
    """The material does not exist: a process that is started would fail."""
    material = Material(tmp_path / "nowhere", None)
    ledger = Ledger(tmp_path, material.name)
    job = Job("train", "default", (0, 2, 5), 1e-3, {"2": 5, "3": 1}, seed=1, tasks="test")
    assert ledger.find(job) is None
    ledger.keep(job, {"figures": 1})
    assert Pool(ledger, material, parallel=2).results([job, job]) == [{"figures": 1}] * 2
    again = Job("train", "default", (0, 2, 5), 1e-3, {"2": 5, "3": 1}, 1, "test", seconds=7)
    assert ledger.file(again) == ledger.file(job)


def test_what_decides_a_job_is_in_its_name(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "texts")
    job = {"purpose": "train", "arm": "default", "layers": (0, 5), "rate": 1e-3, "steps": {"2": 5}}
    changes = (
        {}, {"arm": "paper"}, {"layers": (0, 2, 5)}, {"rate": 1e-4}, {"steps": {"2": 6}},
        {"seed": 1}, {"tasks": "dev"}, {"threads": 2},
    )  # fmt: skip
    files = {ledger.file(Job(**{**job, **change})) for change in changes}  # type: ignore[arg-type]
    files.add(Ledger(tmp_path, "other texts").file(Job(**job)))  # type: ignore[arg-type]
    assert len(files) == len(changes) + 1


def test_code_that_does_the_same_has_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    found = []
    for code in (
        "A = 2\ndef f(x):\n    return x + 1",
        '"""New."""\nA = 2\n"""Of it."""\ndef f(x):\n    "f"\n    return (x+1)  # one',
    ):
        path.write_text(code)
        found.append(code_digest([path]))
    path.write_text("A = 2\ndef f(x):\n    return x + 2")
    assert found[0] == found[1] != code_digest([path])


@pytest.mark.parametrize("name", [arm.name for arm in ARMS.values() if arm.recipe])
def test_recipe_of_an_arm_trains_stage_by_stage(
    name: str, small_encoder: Path, tmp_path: Path
) -> None:
    """On a small student; the stages and their proportions are the recipe's own."""
    book = recipe_of(ARMS[name], LAYERS)
    widths = dict(zip(book.student.reduced_heads, (12, 8), strict=False))
    changes = {"init": str(small_encoder), "reduced_heads": widths}
    book = book.model_copy(update={"student": book.student.model_copy(update=changes)})
    for stage in book.stages.values():
        if "longest" in stage:
            stage["longest"] = 130  # the teachers of this cache count pieces of words
    reader = CacheReader(write_cache(tmp_path, texts=480, widths=(20, 12)))  # as wide as the body
    steps = dict.fromkeys(lengths_of(ARMS[name], LAYERS), 2)
    encode, seconds, costs = ours.distil(
        book, reader, tmp_path / "run", rate=3e-3, steps=steps, seed=0, bf16=False, resume=False
    )
    assert costs.keys() == steps.keys()
    assert seconds.cpu > 0
    vectors = encode(["the old sailor sees music", "the river"])
    assert {head: found.shape for head, found in vectors.items()} == {
        "fc1": (2, reader.width()),
        **{head: (2, width) for head, width in widths.items()},
    }
    again, as_long, _ = ours.distil(
        book, reader, tmp_path / "run", rate=3e-3, steps=steps, seed=0, bf16=False, resume=True
    )
    assert as_long == seconds
    assert np.array_equal(again(["the river"])["fc1"], encode(["the river"])["fc1"])
    records = [
        json.loads((tmp_path / "run" / f"stage-{number}" / "run.json").read_text())["stage"]
        for number in steps
    ]
    rates = np.array([record["learning_rate"] for record in records])
    own = np.array([book.stage(int(number)).learning_rate for number in steps])
    assert rates.max() == pytest.approx(3e-3)
    assert np.allclose(rates / rates[0], own / own[0])
    assert [record["steps"] for record in records] == [2] * len(steps)


def test_all_arms_give_the_same_widths() -> None:
    for arm in ARMS.values():
        if arm.recipe is not None:
            reduced = recipe_of(arm, LAYERS).student.reduced_heads
            assert reduced in ({}, {name: WIDTHS[name] for name in WIDTHS if name != "fc1"})
            assert recipe_of(arm, LAYERS).student.layers == LAYERS


def as_the_teacher(material: Material) -> ours.Encode:
    known: dict[str, FloatArray] = {}
    for reader in (material.reader, CacheReader(material.folder / "tasks")):
        rows = range(len(reader))
        vectors = reader.vectors(rows).astype(np.float32)
        known |= dict(zip(reader.texts(rows), vectors, strict=True))
    return lambda texts: {"fc1": np.stack([known[text] for text in texts])}


def test_the_teacher_keeps_all_of_itself(material: Material) -> None:
    rows = material.reader.train_rows
    projections = principal(material.reader.vectors(rows).astype(np.float32), (12, 8))
    widths = {"fc1": 384, "fc2": 12, "fc3": 8}
    encode = with_principal(as_the_teacher(material), widths, projections)
    figures = measure(encode, material, "test")
    for task in figures["tasks"].values():
        assert task["fc1"]["score"] == task["asymmetric"]["score"] == task["teacher"] > 0.1
    assert figures["mean"]["fc1"] == {"share": pytest.approx(1), "standard_error": 0}
    long = material.reader.tokens(material.reader.held_out_rows).max(axis=1) > LONG
    assert figures["retention"].keys() == ({"all", "long"} if long.sum() > 10 else {"all"})
    for kept in figures["retention"].values():
        assert kept["fc1"] == pytest.approx({"cosine": 1, "order": 1, "neighbours": 1})
    assert figures["of fc1"]["fc1"] == {"mean": 1, "worst": 1}
    assert figures["of fc1"]["fc3"]["worst"] <= figures["of fc1"]["fc3"]["mean"] < 1
    assert figures["retention"]["all"]["fc3"]["order"] < 0.999
    job = Job("train", "default", (0, 2, 5), 1e-3, {"2": 5, "3": 1}, tasks="test")
    figures["shortlist"] = shortlist(remembering(encode), material, "test")
    assert figures["shortlist"]["fc1"] == {"mean": 1, "worst": 1}
    result = {"figures": figures, "seconds": {"cpu": 1.0, "wall": 2.0}}
    other = Job("train", "mse", (0, 2, 5), 1e-3, {"train": 7}, tasks="test")
    found = [
        Finding(of.arm, (0, 2, 5), {1e-3: 0.5, 3e-3: 0.6}, of, [result] * 2) for of in (other, job)
    ]
    setting = Setting("python benchmarks/quality.py", material, 2, "test", 10, 5)
    lines = report(setting, found, longest=found[1])
    assert (
        sum("| default | 0.001 | 5 + 1 | 448 | 2 | 100.00 ± 0.00 (0.00)" in line for line in lines)
        == 2
    )
    assert any(line.startswith("| mse | +0.00 ± 0.00 (0.00) | +0.00 ± 0.00 |") for line in lines)
    assert any(line.startswith("| mse | 0.001 | 7 | 448 | 2 | 100.00") for line in lines)
    assert "| 0, 2, 5 | mse | 50.00 | **60.00** |" in lines

    less = copy.deepcopy(result)
    less["figures"]["mean"]["fc1"]["share"] = 0.97
    batches = Finding("batches of 32", (0, 2, 5), {}, job, [less] * 2)
    lines = tried(setting, [found[1], batches])
    assert any(line.startswith("| the default | 5 + 1 | 1 | 100.00 | 100.00 |") for line in lines)
    assert any(line.startswith("| batches of 32 | 5 + 1 | 1 | -3.00* | +0.00 |") for line in lines)


def test_what_was_prepared_is_not_made_again(material: Material, corpora: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in material.folder.rglob("*.json*")}
    again = prepare(
        material.folder.parent, corpora, texts=240, queries=40, dev_queries=20, phase=silent
    )
    assert again == material
    assert {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.json*")} == files
    assert len(material.reader) == 240
    assert 10 < len(material.reader.held_out_rows) < 40


def test_teacher_has_the_vectors_of_the_tasks_texts_and_no_others(material: Material) -> None:
    asked = [text for task in material.tasks("dev") for text in task.texts]
    assert all(text in material.teacher for text in asked)
    assert not any(text in material.teacher for text in material.reader.texts(range(50)))
    assert np.allclose(np.linalg.norm(material.teacher.of(asked), axis=1), 1, atol=1e-3)


def test_texts_are_encoded_once() -> None:
    asked = []

    def encode(texts: Sequence[str]) -> dict[str, FloatArray]:
        asked.append(list(texts))
        return {"fc1": np.ones((len(texts), 2), np.float32)}

    again = remembering(encode)
    assert [len(again(texts)["fc1"]) for texts in (["a", "b"], ["b"], ["a", "b"])] == [2, 1, 2]
    assert asked == [["a", "b"], ["b"]]


@pytest.mark.parametrize("loss", ["MSELoss", "EmbedDistillLoss"])
def test_the_other_library_trains_the_layers_that_are_kept(
    loss: str, small_encoder: Path, tmp_path: Path
) -> None:
    reader = CacheReader(write_cache(tmp_path, widths=(20, 12)))
    texts = ["the old sailor sees music", "the river"]
    found = []
    for steps in (1, 4):
        encode, seconds, costs = theirs.distil(
            loss, reader, small_encoder, tmp_path / "run",
            layers=LAYERS, max_tokens=48, rate=1e-3, steps=steps, seed=0, bf16=False,
        )  # fmt: skip
        found.append(encode(texts)["fc1"])
        assert seconds.cpu > 0
        assert costs.keys() == {"train"}
    assert found[0].shape == (2, 32)
    assert not np.allclose(found[0], found[1])
    pruned = create(
        StudentSpec(init="-", layers=LAYERS, reduced_heads={}, max_tokens=48), small_encoder, 32, 0
    )
    untrained, *_ = theirs.distil(
        None, reader, small_encoder, tmp_path / "run",
        layers=LAYERS, max_tokens=48, rate=0.0, steps=0, seed=0, bf16=False,
    )  # fmt: skip
    assert np.allclose(
        untrained(texts)["fc1"], unit(encode_by(pruned, texts, ())[POOLED]), atol=1e-5
    )
