from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pairs import Pair, conversation, pairs, write_folder, write_parquet, write_tar
from small_vision import picture

from data.captions import Skipped
from data.corpus import CorpusSpec, is_held_out, text_id
from data.files import CorpusError
from data.images import Preprocessing
from data.pairs import Pairs
from data.pairs_spec import PairsSpec

AS_READ = Preprocessing(6)
CONTENT = pairs(10)


def opened(folder: Path, base: Path = Path(), **changes: Any) -> Pairs:
    spec = changes if "dataset" in changes else {"path": str(folder), **changes}
    return Pairs(PairsSpec.model_validate(spec), base)


def assert_holds(found: Pairs, content: list[Pair]) -> None:
    rows = np.arange(len(content))
    assert found.captions(rows) == [caption for _, caption in content]
    expected = np.stack([AS_READ.pixels(data) for data, _ in content])
    same, pixels = found.load(rows, AS_READ, among=rows)
    assert np.array_equal(pixels, expected)
    assert np.array_equal(same, rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_captions(tmp_path: Path, kind: str) -> None:
    assert_holds(opened(write_folder(tmp_path / "a", CONTENT, kind=kind)), CONTENT)
    file = tmp_path / "a" / f"captions.{kind}"
    assert_holds(opened(file), CONTENT)
    elsewhere = tmp_path / file.name
    elsewhere.write_text(file.read_text())
    assert_holds(opened(elsewhere, images=str(tmp_path / "a")), CONTENT)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet(tmp_path: Path, struct: bool) -> None:
    assert_holds(opened(write_parquet(tmp_path / "a", CONTENT, struct=struct)), CONTENT)


def test_tars(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "a", CONTENT)
    assert_holds(opened(folder, caption_field="conversations"), CONTENT)
    assert_holds(opened(folder / "*.tar", caption_field="conversations"), CONTENT)
    assert_holds(opened(write_tar(tmp_path / "b", CONTENT, as_json=False)), CONTENT)


def test_data_sets(tmp_path: Path) -> None:
    import datasets

    rows = {
        "jpg": [data for data, _ in CONTENT],
        "json": [{"conversations": conversation(caption)} for _, caption in CONTENT],
    }
    datasets.Dataset.from_dict(rows).cast_column("jpg", datasets.Image()).save_to_disk(
        str(tmp_path / "saved")
    )
    fields = {"image_field": "jpg", "caption_field": "json.conversations"}
    assert_holds(opened(tmp_path, dataset=str(tmp_path / "saved"), **fields), CONTENT)


def test_pairs_with_the_same_caption_are_held_out_together_as_a_corpus_would(
    tmp_path: Path,
) -> None:
    content = [(data, f"number {i % 40}") for i, (data, _) in enumerate(pairs(80))]
    found = opened(write_folder(tmp_path / "a", content), held_out=0.3, seed=5)
    apart = set(found.captions(found.held_out))
    assert apart
    assert not apart & set(found.captions(found.train))
    assert len(found.train) + len(found.held_out) == 80
    spec = CorpusSpec.model_validate({"sources": [{"name": "a", "path": "a"}], "held_out": 0.3})
    assert apart == {c for _, c in content if is_held_out(text_id(c), spec.held_out, 5)}


def test_a_broken_image_gives_its_turn_to_the_next_and_is_named_once(tmp_path: Path) -> None:
    content = pairs(6)
    content[2] = (b"no image at all", content[2][1])
    content[3] = (content[3][0][:-30], content[3][1])
    found = opened(write_folder(tmp_path / "a", content), most_broken=2)
    told: list[tuple[str, str]] = []
    among = np.arange(6)
    for _ in range(2):
        rows, pixels = found.load(
            np.array([5, 2, 3, 0]), AS_READ, among=among, on_broken=lambda n, w: told.append((n, w))
        )
        assert rows.tolist() == [5, 4, 4, 0]
        assert np.array_equal(pixels[1], AS_READ.pixels(content[4][0]))
    assert sorted(name for name, _ in told) == ["images/002.png", "images/003.png"]
    assert found.broken["images/002.png"].startswith("no image: 15 bytes")


def test_more_broken_images_than_allowed_stop_the_run(tmp_path: Path) -> None:
    content = [(b"?", caption) for _, caption in pairs(4)]
    found = opened(write_folder(tmp_path / "a", content), most_broken=2)
    with pytest.raises(CorpusError, match=r"3 images cannot be used, at most 2.*no image: 1 bytes"):
        found.load(np.array([0]), AS_READ, among=np.arange(4))
    patient = opened(tmp_path / "a")
    with pytest.raises(CorpusError, match="none of 4 images can be used"):
        patient.load(np.array([0]), AS_READ, among=np.arange(4))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("https://example.org/a.png", "is no name within"),
        ("../../secret.png", "is no name within"),
        ("/etc/passwd", "is no name within"),
        ("images/none.png", "No such file"),
        ("images", "Is a directory"),
    ],
)
def test_names_lead_nowhere_else_and_nothing_is_fetched(
    tmp_path: Path, name: str, why: str
) -> None:
    folder = write_folder(tmp_path / "b" / "a", pairs(2))
    (tmp_path / "secret.png").write_bytes(picture(0))
    lines = (folder / "captions.jsonl").read_text() + json.dumps({"image": name, "caption": "x"})
    (folder / "captions.jsonl").write_text(lines)
    found = opened(folder)
    rows, _ = found.load(np.array([2]), AS_READ, among=np.arange(3))
    assert rows.tolist() == [0]
    assert why in found.broken[name]


def test_a_row_without_caption_or_image_is_refused_where_it_is_or_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", pairs(3))
    lines = (folder / "captions.jsonl").read_text().splitlines()
    for bad, message in (
        ('{"image": "images/001.png", "caption": ""}', "jsonl:2: expected a caption in caption, f"),
        ('{"image": "images/001.png", "caption": " "}', "found an empty one"),
        ('{"image": "images/001.png"}', "expected a caption in caption, found 'image'"),
        ('{"caption": "a text"}', "expected the name of an image in image"),
        ('{"image": "images/001.png", "caption": 3}', "found 3"),
        ('{"image"', "expected one JSON value a line"),
    ):
        (folder / "captions.jsonl").write_text("\n".join([lines[0], bad, lines[2]]))
        with pytest.raises(CorpusError, match=message):
            opened(folder)
        found = opened(folder, bad_rows="skip")
        assert (len(found), found.skipped.rows) == (2, 1)
        assert message.removeprefix("jsonl:2: ") in found.skipped.first
        assert f"{folder}/captions.jsonl:2: expected " in found.skipped.first


def test_skipped_rows_are_counted_in_every_layout(tmp_path: Path) -> None:
    content = [*pairs(4), (pairs(1)[0][0], " "), (pairs(1)[0][0], "")]
    for found in (
        opened(write_folder(tmp_path / "a", content), bad_rows="skip"),
        opened(write_parquet(tmp_path / "b", content), bad_rows="skip"),
        opened(write_tar(tmp_path / "c", content, as_json=False), bad_rows="skip"),
    ):
        assert (len(found), found.skipped.rows) == (4, 2)
        assert "expected a caption" in found.skipped.first
    assert opened(write_folder(tmp_path / "d", pairs(2))).skipped == Skipped()
    bad = write_folder(tmp_path / "e", content[4:])
    with pytest.raises(CorpusError, match=r"found none; 2 rows are bad, the first is .*jsonl:1: "):
        opened(bad, bad_rows="skip")


def test_globs_are_followed_through_folders_and_judged_by_what_they_match(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / "parts" / str(number), CONTENT)
        (tmp_path / "parts" / str(number) / "x").mkdir()
    for pattern, count in (("parts/*/a.tar", 15), ("parts/*/*", 30), ("**/b.tar", 15)):
        assert len(opened(tmp_path / pattern, caption_field="conversations")) == count
    write_parquet(tmp_path / "p" / "one", CONTENT)
    write_parquet(tmp_path / "p" / "two", CONTENT)
    assert len(opened(tmp_path / "p" / "*" / "*.parquet")) == 20
    assert len(opened(tmp_path / "p" / "**" / "*")) == 20
    with pytest.raises(CorpusError, match="expected files of one kind, found parquet, tar"):
        opened(tmp_path / "**" / "*")
    (tmp_path / "p" / "notes.md").write_text("mine")
    message = r"notes\.md: expected captions \(\.jsonl .*\), \.parquet or \.tar, found \.md"
    with pytest.raises(CorpusError, match=message):
        opened(tmp_path / "p" / "*.md")
    for gone in ("parts/*/x-*.tar", "gone.jsonl"):
        with pytest.raises(CorpusError, match="there is no such file"):
            opened(tmp_path / gone)


def test_more_parquet_files_may_be_there_than_a_process_may_open(tmp_path: Path) -> None:
    count = 40
    for number in range(count):
        write_parquet(tmp_path / f"{number:02}", CONTENT[number % 10 :][:1])
    before = open_files()
    found = opened(tmp_path / "*" / "*.parquet")
    rows = np.array([*range(count), 0, 1])
    _, pixels = found.load(rows, AS_READ, among=np.arange(count))
    assert open_files() - before <= 16
    for row, seen in zip(rows, pixels, strict=True):
        assert np.array_equal(seen, AS_READ.pixels(CONTENT[row % 10][0]))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_what_is_no_source_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected captions"):
        opened(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match="is packed"):
        opened(tmp_path / "a.tar.gz")
    (tmp_path / "b.tar").write_bytes(b"x" * 700)
    with pytest.raises(CorpusError, match="expected a whole tar"):
        opened(tmp_path / "b.tar")
    write_parquet(tmp_path / "p", pairs(2))
    with pytest.raises(CorpusError, match="expected a column 'text', found image, caption"):
        opened(tmp_path / "p", caption_field="text")
    with pytest.raises(ValueError, match="exactly one of path, dataset and generator"):
        PairsSpec()


def test_the_identity_is_that_of_captions_names_and_split(tmp_path: Path) -> None:
    first = opened(write_folder(tmp_path / "a", CONTENT))
    assert first.identity == opened(write_folder(tmp_path / "b", CONTENT)).identity
    changed = [*CONTENT[:-1], (CONTENT[-1][0], "another caption")]
    others = [
        opened(write_folder(tmp_path / "c", changed)),
        opened(tmp_path / "a", held_out=0.1),
        opened(tmp_path / "a", held_out=0.1, seed=1),
    ]
    assert len({first.identity, *(other.identity for other in others)}) == 4
