"""Stage 4: what trains, what it learns from, and that its order, resume and processes are exact."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_caches import write_cache
from small_pairs import pairs, write_folder
from small_vision import SIDE, write_siglip
from torch import Tensor
from torch.nn import functional as F

from data.corpus import Corpus, CorpusSpec
from data.files import CorpusError
from data.images import Preprocessing
from data.pairs import Pairs
from data.pairs_spec import PairsSpec
from student.batches import batches
from student.export.folder import export
from student.losses import combined_loss, contrastive_loss
from student.model import Student, load
from student.order import Order
from student.run import StageRun, read_record
from student.seeing import CaptionStates, Seeing, seen
from student.spec import StudentError, StudentSpec, VisionSpec
from student.stage_checks import check
from student.stages import StageError, stage
from student.train import Settings, train
from teacher_cache.build import Options, build
from teacher_cache.reader import CacheReader
from teacher_cache.teachers import TeacherSpec, resolve

TEXT = StudentSpec(init="-", reduced_heads={"fc2": 6, "fc3": 4, "fc4": 3}, max_tokens=24)
SPEC = TEXT.model_copy(update={"vision": VisionSpec(image_tokens=5)})
QUICK = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "probe_every": 3}
ON_CPU = Settings(cpu=True, save_every=3)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(write_cache(tmp_path_factory.mktemp("cache"), texts=60))


@pytest.fixture(scope="module")
def start(
    reader: CacheReader, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with its third stage: the text side."""
    out = tmp_path_factory.mktemp("text")
    spec = stage(3, {**QUICK, "steps": 2})
    run = StageRun(out, 3, spec, TEXT, reader.identity, reader.teachers, 0, "fresh")
    assert train(run, reader, small_encoder, settings=ON_CPU)
    return run.folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, some with the same caption, and a small SigLIP."""
    folder = tmp_path_factory.mktemp("seen")
    content = pairs(40, "the river and house")
    content[7] = (content[7][0], content[6][1])
    write_folder(folder / "pairs", content)
    write_siglip(folder / "siglip")
    return folder


def seeing(folder: Path, captions: CacheReader | None = None, **changes: Any) -> Seeing:
    spec = {"path": str(folder / "pairs"), "held_out": 0.2, **changes}
    return Seeing(Pairs(PairsSpec.model_validate(spec)), folder / "siglip", captions)


def run_of(reader: CacheReader, start: Path, out: Path, given: Seeing, **changes: Any) -> StageRun:
    return StageRun(
        out, 4, stage(4, {**QUICK, **changes}), SPEC, reader.identity, reader.teachers, 0,
        str(start), given.pairs.identity,
    )  # fmt: skip


def trained(
    reader: CacheReader, start: Path, out: Path, given: Seeing, **changes: Any
) -> dict[str, Tensor]:
    run = run_of(reader, start, out, given, **changes)
    assert train(run, reader, start / "model/text", seeing=given, settings=ON_CPU)
    return dict(load(run.model).state_dict())


def losses(out: Path) -> list[dict[str, float]]:
    lines = (out / "stage-4" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def plain(
    reader: CacheReader, start: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("plain")
    trained(reader, start, out, seeing(folder))
    return out


@pytest.fixture(scope="module")
def captions(start: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """The captions' pooled states, from the student of stage 3 as a teacher like any other."""
    return caption_cache(tmp_path_factory.mktemp("captions"), start, folder)


def caption_cache(
    out: Path, start: Path, folder: Path, *more: dict[str, str], **changes: Any
) -> CacheReader:
    student, record = load(start / "model"), read_record(start)
    export(student, out / "teacher", head="pooled", record=record)
    source = {"name": "captions", "pairs": {"path": str(folder / "pairs" / "captions.jsonl")}}
    spec = CorpusSpec.model_validate({"sources": [source, *more], "held_out": 0.1})
    teacher = {
        "name": "text-side", "encoder": "sentence-transformers", "path": str(out / "teacher"),
        "max_tokens": TEXT.max_tokens, "keep_pooled": True, **changes,
    }  # fmt: skip
    chosen = [resolve(TeacherSpec.model_validate(teacher))]
    build(out / "cache", Corpus(spec), chosen, options=Options(rows_per_shard=16))
    return CacheReader(out / "cache")


def test_the_vision_encoder_alone_changes_bit_for_bit(plain: Path, start: Path) -> None:
    before, after = load(start / "model").state_dict(), load(plain / "stage-4/model").state_dict()
    word = "text.embeddings.word_embeddings.weight"
    for name, value in before.items():
        # The three image tokens are new rows behind the others.
        kept = after[name][: len(value)] if name == word else after[name]
        assert torch.equal(value, kept), name
    assert len(after[word]) == len(before[word]) + 3
    new = {name for name in after if name not in before}
    assert all(name.startswith("vision.encoder.") for name in new)


def test_every_parameter_of_the_vision_encoder_learns_but_its_unused_head(
    plain: Path, folder: Path
) -> None:
    before = load_file(folder / "siglip" / "model.safetensors")
    after = load_file(plain / "stage-4/model/vision/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        # A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
        if "k_proj.bias" not in name:
            assert torch.equal(value, after[name]) == (".head." in name), name


def oracle(vectors: dict[str, Tensor], targets: dict[str, Tensor]) -> float:
    """The mean over the heads of Eq. 4, in float64."""
    weights = {"cosine": 10.0, "similarity": 200.0, "relative": 20.0, "margin": 0.015}
    found = [combined_loss(vectors[h].double(), targets[h].double(), **weights)[0] for h in vectors]
    return float(torch.stack(found).mean())


def test_the_loss_is_the_mean_over_the_heads_against_the_captions_own_vectors(
    plain: Path, start: Path, folder: Path, reader: CacheReader
) -> None:
    from student.jasper import load_image_side

    given = seeing(folder)
    student = load(start / "model")
    assert SPEC.vision is not None
    student.add_vision(load_image_side(folder / "siglip", student.hidden, SPEC.vision))
    rows = given.pairs.train[Order(len(given.pairs.train), 8, 0).rows_of(0)]
    _, pixels = given.pairs.load(rows, Preprocessing(SIDE), among=given.pairs.train)
    heads = ("fc1", "fc2", "fc3", "fc4")
    with torch.no_grad():
        vectors = student(student.batch(list(torch.from_numpy(pixels))), heads)
        targets = student(student.batch(given.pairs.captions(rows)), heads)
    seen_losses: list[float] = []
    out = plain.parent / "one-step"
    run = run_of(reader, start, out, given, steps=1)
    train(run, reader, start / "model/text", seeing=given, settings=ON_CPU,
          on_step=lambda _, m: seen_losses.extend([m["loss"]] if m else []))  # fmt: skip
    assert seen_losses == [pytest.approx(oracle(vectors, targets), rel=1e-3)]


def test_cached_captions_give_the_same_loss(
    plain: Path, reader: CacheReader, start: Path, folder: Path, captions: CacheReader,
    tmp_path: Path,
) -> None:  # fmt: skip
    trained(reader, start, tmp_path, seeing(folder, captions))
    for one, two in zip(losses(plain), losses(tmp_path), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
        assert one["probe.loss"] == pytest.approx(two["probe.loss"], abs=1e-5)


def test_states_of_captions_are_the_students_own(
    start: Path, folder: Path, captions: CacheReader
) -> None:
    texts = seeing(folder).pairs.captions(range(40))
    student = load(start / "model")
    with torch.no_grad():
        expected = student.pooled(student.batch(texts)).half().float().numpy()
    found = CaptionStates(captions, start / "model" / "text", TEXT).states(texts)
    assert np.abs(found.astype(np.float32) - expected).max() <= 1e-3
    assert np.array_equal(found[6], found[7])


def test_captions_of_another_student_are_refused(
    reader: CacheReader, small_encoder: Path, start: Path, folder: Path, captions: CacheReader,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = replace(
        StageRun(tmp_path, 3, stage(3, {**QUICK, "steps": 3}), TEXT, reader.identity,
                 reader.teachers, 0, "fresh")
    )  # fmt: skip
    train(other, reader, small_encoder, settings=ON_CPU)
    given = seeing(folder, captions)
    run = run_of(reader, other.folder, tmp_path, given)
    with pytest.raises(StudentError, match="is of another student"):
        train(run, reader, start / "model/text", seeing=given, settings=ON_CPU)
    assert not run.folder.exists()
    text = start / "model" / "text"
    with pytest.raises(StudentError, match="keeps no pooled states of captions; make it with"):
        CaptionStates(reader, text, TEXT)
    with pytest.raises(StudentError, match="at most 24 tokens"):
        CaptionStates(captions, text, TEXT.model_copy(update={"max_tokens": 20}))
    with pytest.raises(StudentError, match="lacks the caption 'a caption of something else'"):
        CaptionStates(captions, text, TEXT).states(["a caption of something else"])


def test_captions_behind_no_prompt_are_not_taken_for_those_behind_the_students(
    start: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "questions.txt").write_text("what does the river do in winter\n")
    more = {"name": "questions", "path": str(tmp_path / "questions.txt")}
    captions = caption_cache(tmp_path, start, folder, more, prompts={"questions": "q: "})
    with pytest.raises(StudentError, match=r"tokens behind '', 'q: '; .* 24 behind 'q: '$"):
        CaptionStates(captions, start / "model/text", TEXT.model_copy(update={"prompt": "q: "}))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_that_was_interrupted_ends_as_if_it_was_not(
    plain: Path, reader: CacheReader, start: Path, folder: Path, captions: CacheReader,
    tmp_path: Path, cached: bool,
) -> None:  # fmt: skip
    given = seeing(folder, captions if cached else None)
    run = run_of(reader, start, tmp_path, given)

    def stop(done: int, _: object) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(run, reader, start / "model/text", seeing=given, settings=ON_CPU, on_step=stop)
    assert train(run, reader, start / "model/text", seeing=given, settings=ON_CPU)
    expected = load(plain / "stage-4/model").state_dict()
    for name, value in load(run.model).state_dict().items():
        if cached:
            assert (value - expected[name]).abs().max() < 2e-3
        else:
            assert torch.equal(value, expected[name]), name
    changed = seeing(folder, held_out=0.3)
    with pytest.raises(StudentError, match="trained with other settings: images was"):
        train(replace(run, images=changed.pairs.identity), reader, start, seeing=changed)


@pytest.mark.parametrize("changes", [{"micro_batch": 4}, {"gradient_checkpointing": True}])
def test_fields_that_save_memory_change_nothing(
    plain: Path, reader: CacheReader, start: Path, folder: Path, tmp_path: Path,
    changes: dict[str, Any],
) -> None:  # fmt: skip
    found = trained(reader, start, tmp_path, seeing(folder), **changes)
    expected = load(plain / "stage-4/model").state_dict()
    for name, value in found.items():
        if "k_proj.bias" not in name:
            assert (value - expected[name]).abs().max() < 1e-4, name


def test_processes_share_what_one_would_read(start: Path, folder: Path) -> None:
    from student.jasper import load_image_side

    given = seeing(folder)
    student: Student = load(start / "model")
    assert SPEC.vision is not None
    student.add_vision(load_image_side(folder / "siglip", student.hidden, SPEC.vision))
    samples = seen(given, student, None, folder, None)
    order = Order(samples.train, 8, seed=1)
    whole = next(batches(samples, order, [3]))
    parts = [next(batches(samples, order, [3], process=p, processes=2)) for p in range(2)]
    with torch.no_grad():
        together = torch.cat([student.pooled(part.texts) for part in parts])
        assert torch.allclose(student.pooled(whole.texts), together, atol=1e-5)


def test_broken_images_are_written_down_and_too_many_stop_the_stage(
    reader: CacheReader, start: Path, folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / "pairs" / "captions.jsonl").open("a") as lines:
        lines.write('{"image": "images/000.png"}\n')
    given = seeing(damaged, bad_rows="skip")
    bad = given.pairs.source.name(int(given.pairs.train[3]))
    (damaged / "pairs" / bad).write_bytes(b"not an image")
    run = run_of(reader, start, tmp_path / "run", given, steps=8)

    def stop(done: int, _: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    init = start / "model/text"
    with pytest.raises(KeyboardInterrupt):
        train(run, reader, init, seeing=given, settings=ON_CPU, on_step=stop)
    train(run, reader, init, seeing=seeing(damaged, bad_rows="skip"), settings=ON_CPU)
    broken = (tmp_path / "run/stage-4/broken-images.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in broken] == [bad, bad], "once before, once after"
    figures = read_record(tmp_path / "run/stage-4")["figures"]
    assert (figures["images_passed_over"], figures["pairs_skipped"]) == (1, 1)
    strict = seeing(damaged, most_broken=0, bad_rows="skip")
    run = run_of(reader, start, tmp_path / "strict", strict, steps=8)
    with pytest.raises(CorpusError, match=f"1 images cannot be used, at most 0.*{bad}: no image"):
        train(run, reader, start / "model/text", seeing=strict, settings=ON_CPU)


def test_a_contrastive_term_is_each_vector_finding_its_own_caption() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y[4] = y[1]  # one caption, two images: neither is the other's mistake
    a, b = F.normalize(x), F.normalize(y)
    total = 0.0
    for first, second in ((a, b), (b, a)):
        for i in range(6):
            others = [j for j in range(6) if j == i or {i, j} != {1, 4}]
            scores = torch.stack([first[i] @ second[j] / 0.1 for j in others])
            total -= float(scores[others.index(i)] - scores.logsumexp(0))
    assert float(contrastive_loss(x, y, 0.1)) == pytest.approx(total / 12, rel=1e-9)


def test_a_projection_trains_where_a_recipe_names_it(
    reader: CacheReader, start: Path, folder: Path, tmp_path: Path
) -> None:
    given = seeing(folder)
    spec = SPEC.model_copy(update={"vision": VisionSpec(image_tokens=5, projection=True)})
    run = replace(run_of(reader, start, tmp_path, given, trains=["pooler"]), student=spec)
    train(run, reader, start / "model/text", seeing=given, settings=ON_CPU)
    after = load(run.model)
    assert after.vision is not None
    assert not torch.equal(after.vision.pooler.weight, torch.eye(32))  # type: ignore[arg-type]
    began = load_file(folder / "siglip" / "model.safetensors")
    ended = load_file(run.model / "vision" / "model.safetensors")
    assert all(torch.equal(value, ended[name]) for name, value in began.items())
    without = replace(run, student=SPEC, out=tmp_path / "without")
    with pytest.raises(StageError, match="projection is false"):
        train(without, reader, start / "model/text", seeing=given, settings=ON_CPU)


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (4, {"trains": ["vision", "heads"]}, "trains vision and pooler alone"),
        (4, {"heads": {"fc1": {"target": "teachers"}}}, "an image's target is"),
        (3, {"heads": {"fc1": {"target": "captions"}}}, "a text has none"),
        (4, {"closed_form": ["fc2"]}, "solves no head"),
        (3, {"heads": {"fc2": {"contrastive": 1}}}, "the contrastive loss compares vectors of one"),
    ],
)
def test_stages_that_make_no_sense_are_refused(
    number: int, changes: dict[str, Any], message: str
) -> None:
    widths = {"fc1": 20, "fc2": 6, "fc3": 4, "fc4": 3}
    with pytest.raises(StageError, match=message):
        check(stage(number, {**QUICK, **changes}), widths, 20, 100, ("left", "right"))
