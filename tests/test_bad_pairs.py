"""Pairs that cannot be used: a bad row, an odd name or a strange path costs itself and no more."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_pairs import conversation, pairs, write_folder
from small_vision import picture
from test_pairs import AS_READ, CONTENT, assert_holds, opened

from data.files import CorpusError


def test_backups_and_hidden_files_are_no_captions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", CONTENT)
    captions = (folder / "captions.jsonl").read_text()
    for name in ("captions.jsonl.bak", ".captions.jsonl.swp", ".captions.jsonl", "c.csv.old"):
        (folder / name).write_text(captions)
    assert_holds(opened(folder), CONTENT)
    with pytest.raises(CorpusError, match=r"\.bak: expected captions .*, found \.bak"):
        opened(folder / "captions.jsonl.bak")
    (folder / "captions.jsonl").rename(folder / "CAPTIONS.JSONL")
    assert_holds(opened(folder), CONTENT)


@pytest.mark.parametrize("name", ["\ud800.png", "a\0.png", "", 3, None])
def test_what_no_file_can_be_called_is_a_bad_row(tmp_path: Path, name: object) -> None:
    folder = write_folder(tmp_path / "a", CONTENT)
    with (folder / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"image": name, "caption": "x"}))
    message = r"jsonl:11: expected the name of an image in image, found "
    with pytest.raises(CorpusError, match=message):
        opened(folder)
    found = opened(folder, bad_rows="skip")
    assert found.skipped.rows == 1
    assert found.skipped.first.isprintable()
    assert_holds(found, CONTENT)


@pytest.mark.parametrize(
    "turns", [[{"from": "gpt"}], [{"from": "gpt", "value": 3}], "[" * 100_000, '{"a": ']
)
def test_a_conversation_without_an_answer_is_a_bad_row(tmp_path: Path, turns: object) -> None:
    folder = write_folder(tmp_path / "a", [])
    rows = [("images/0.png", conversation("a picture")), ("images/1.png", turns)]
    lines = [json.dumps({"image": name, "conversations": turns}) for name, turns in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    found = opened(folder, caption_field="conversations", bad_rows="skip")
    assert (found.captions([0]), found.skipped.rows) == (["a picture"], 1)


def strings(*values: bytes) -> pa.Array:
    """Text as another program may have written it."""
    buffers = pa.array(values, pa.binary()).buffers()
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def test_a_caption_of_other_bytes_costs_its_own_row_only(tmp_path: Path) -> None:
    import datasets

    images = [picture(number) for number in range(4)]
    captions = strings(b"one", b"caf\xe9", b"three", b"four")
    table = pa.table({"image": images, "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for source in ({"path": "a.parquet"}, {"dataset": "./saved"}):
        with pytest.raises(CorpusError, match="row 1: expected valid UTF-8"):
            opened(tmp_path, base=tmp_path, **source)
        found = opened(tmp_path, base=tmp_path, bad_rows="skip", **source)
        assert found.skipped.rows == 1
        rest = [(images[i], caption) for i, caption in ((0, "one"), (2, "three"), (3, "four"))]
        assert_holds(found, rest)


def test_names_in_a_tar_may_be_of_any_bytes(tmp_path: Path) -> None:
    form = {"format": tarfile.GNU_FORMAT, "encoding": "latin-1"}
    with tarfile.open(tmp_path / "a.tar", "w", **form) as tar:  # type: ignore[call-overload]
        for name, (data, caption) in zip(("caf\xe9", "caf\xe8", "plain"), CONTENT, strict=False):
            for kind, content in (("png", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{kind}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    (tmp_path / "a.tar").rename(tmp_path / b"caf\xe9.tar".decode("utf-8", "surrogateescape"))
    found = opened(tmp_path)
    assert_holds(found, CONTENT[:3])
    assert found.identity == opened(tmp_path).identity


def test_a_path_of_other_bytes_gives_its_turn_to_the_next(tmp_path: Path) -> None:
    data = [data for data, _ in CONTENT[:3]]
    paths = strings(b"a.png", b"caf\xe9.png", b"c.png")
    images = pa.StructArray.from_arrays([pa.array(data), paths], ["bytes", "path"])
    table = pa.table({"image": images, "caption": ["one", "two", "three"]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = opened(tmp_path).load(np.arange(3), AS_READ, among=np.arange(3))
    assert rows.tolist() == [0, 2, 2]


def saved_with_paths(folder: Path, paths: list[str]) -> None:
    import datasets

    rows = {
        "image": [{"bytes": None, "path": path} for path in paths],
        "caption": [f"number {number}" for number in range(len(paths))],
    }
    kinds: Any = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    features = datasets.Features({**kinds, "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))


def test_a_data_set_leads_to_no_image_outside_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (tmp_path / "secret.png").write_bytes(picture(0))
    paths = {
        "own.png": "",
        str(folder / "own.png"): "",
        str(tmp_path / "secret.png"): "is no name within the data set",
        "../secret.png": "is no name within the data set",
        f"{folder}/../secret.png": "is no name within the data set",
        "a\0.png": "is no name within the data set",
        "https://example.org/a.png": "is an address: nothing is fetched",
    }
    saved_with_paths(folder, list(paths))
    (folder / "own.png").write_bytes(picture(1))
    for name in ("./set", str(folder), "./set/../set"):
        found = opened(tmp_path, dataset=name, base=tmp_path)
        among = np.arange(len(paths))
        rows, _ = found.load(among, AS_READ, among=among)
        assert rows.tolist() == [0, 1, *[0] * (len(paths) - 2)]
        assert set(found.broken) == {f"row {number}" for number in range(2, len(paths))}
        for number, why in enumerate(paths.values()):
            assert why in found.broken.get(f"row {number}", "")


def test_a_folder_of_images_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    folder = write_folder(tmp_path / "a", pairs(3))
    lines = (folder / "captions.jsonl").read_text().replace('"image"', '"file_name"')
    (folder / "metadata.jsonl").write_text(lines)
    (folder / "captions.jsonl").unlink()
    (tmp_path / "link").symlink_to(folder)
    for name in ("./a", "./link"):
        assert_holds(opened(tmp_path, dataset=name, base=tmp_path), pairs(3))
