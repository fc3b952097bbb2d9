"""Verification finds every kind of damage and names the shard; a whole cache has none."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from forging import change_manifest, forge, retold, scaled, swapped
from jobs import copy
from shard_files import shard_file

from teacher_cache.format import CacheError, FileRecord, plan_path, record_path
from teacher_cache.reader import CacheReader
from teacher_cache.verify import verify


@pytest.fixture
def own(cache: CacheReader, tmp_path: Path) -> Path:
    """A whole cache, to damage."""
    return copy(cache.path, tmp_path / "own")


def problems(folder: Path) -> list[str]:
    return verify(CacheReader(folder, check_sizes=False))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def shards_named(found: Sequence[str]) -> set[int]:
    return {int(line.split()[1]) for line in found if line.startswith("shard ")}


def test_whole_cache_has_no_problems_and_every_shard_is_reported(cache: CacheReader) -> None:
    done: list[int] = []
    assert verify(cache, done.append) == []
    assert done == [1, 1, 1, 1]


def regions(path: Path) -> dict[str, int]:
    """A place in each part of a shard: around the columns, and in every buffer of each."""
    data = path.read_bytes()
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    places = {"magic": 1, "schema": 100, "footer": len(data) - 40, "end": len(data) - 1}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        for number, buffer in enumerate(column.buffers()):
            if buffer is not None:
                raw = buffer.to_pybytes()
                places[f"{field.name}, buffer {number}"] = data.index(raw) + len(raw) // 2
    return places


def test_flipped_byte_anywhere_in_a_shard_is_found(own: Path) -> None:
    path = shard_file(own, 1)
    places = regions(path)
    assert len(places) == 12
    whole = path.read_bytes()
    for place in places.values():
        flip(path, place)
        (found,) = problems(own)
        assert found.startswith(f"shard 1 ({path}) has checksum ")
        path.write_bytes(whole)
    assert problems(own) == []


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_truncated_shard_is_named(size: int, own: Path) -> None:
    path = shard_file(own, 2)
    data = path.read_bytes()
    path.write_bytes(data[:size])
    (found,) = problems(own)
    kept = len(data[:size])
    assert found == f"shard 2 ({path}) has {kept} bytes but its record says {len(data)}"


def test_missing_shards_and_records_are_named(own: Path) -> None:
    shard_file(own, 0).unlink()
    where = f"shard 3 ({shard_file(own, 3)})"
    record_path(own, 3).unlink()
    missing, unrecorded = problems(own)
    assert missing == f"shard 0 ({shard_file(own, 0)}) is missing"
    assert unrecorded.startswith(f"{where}: its commit record cannot be read")


def swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_swapped_shards_are_both_named(own: Path) -> None:
    swap(shard_file(own, 0), shard_file(own, 1))
    assert shards_named(problems(own)) == {0, 1}
    swap(record_path(own, 0), record_path(own, 1))
    assert shards_named(problems(own)) == {0, 1}


def test_shards_swapped_with_all_their_records_are_still_in_the_wrong_place(own: Path) -> None:
    before = shard_file(own, 0), shard_file(own, 1)
    swap(record_path(own, 0), record_path(own, 1))
    for path, place in zip(before, (shard_file(own, 1), shard_file(own, 0)), strict=True):
        path.rename(place)

    def swap_in_manifest(data: dict[str, list[object]]) -> None:
        data["shards"][:2] = data["shards"][1::-1]

    change_manifest(own, swap_in_manifest)
    found = problems(own)
    assert shards_named(found) == {0, 1}
    assert found[0] == f"{own / 'plan.json'}: its shards differs from the manifest's"
    assert all("belongs elsewhere" in line for line in found[1:])


def another(value: int | str) -> int | str:
    """Another value of the same form."""
    return value + 1 if isinstance(value, int) else value[1:] + value[0]


@pytest.mark.parametrize("field", ["rows", "bytes", "checksum", "ids_digest"])
def test_edited_record_is_named(field: str, own: Path) -> None:
    where = f"shard 1 ({shard_file(own, 1)})"
    path = record_path(own, 1)
    data = json.loads(path.read_text())
    data[field] = another(data[field])
    path.write_text(json.dumps(data))
    (found,) = problems(own)
    assert found == f"{where}: its commit record differs from the manifest's"


@pytest.mark.parametrize("field", ["bytes", "checksum", "ids_digest"])
def test_shard_that_the_manifest_describes_otherwise_is_named(field: str, own: Path) -> None:
    def edit(data: dict[str, list[object]]) -> None:
        record = FileRecord.from_json(data["shards"][1], "")  # type: ignore[arg-type]
        data["shards"][1] = replace(record, **{field: another(getattr(record, field))}).to_json()

    change_manifest(own, edit)
    found = problems(own)
    # The plan has the digest of its ids as well.
    assert len(found) == (3 if field == "ids_digest" else 2)
    assert shards_named(found) == {1}


@pytest.mark.parametrize("field", ["rows", "identity", "ids_digest", "blocks"])
def test_manifest_whose_facts_were_edited_does_not_open(field: str, own: Path) -> None:
    def edit(data: dict[str, list[object]]) -> None:
        value = data[field]
        data[field] = value[::-1] if isinstance(value, list | str) else value + 1  # type: ignore[operator]

    change_manifest(own, edit)
    with pytest.raises(CacheError, match=r"manifest\.json: .*the file was changed"):
        problems(own)


def test_plan_that_differs_from_the_manifest_is_named_with_its_field(own: Path) -> None:
    path = own / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "held_out_rows": 2}))
    assert problems(own) == [f"{path}: its held_out_rows differs from the manifest's"]


def test_damaged_plan_is_named_and_a_cache_may_do_without(own: Path) -> None:
    path = plan_path(own, 2)
    flip(path, 200)
    (found,) = problems(own)
    assert found.startswith(f"{path} has checksum ")
    path.unlink()
    assert problems(own) == [f"{path} is missing: the plan of {own} lists it"]
    (own / "plan.json").unlink()
    shutil.rmtree(own / "plan")
    assert problems(own) == []


@pytest.mark.parametrize("factor", [0, 0.99, 1.01, np.nan, np.inf])
def test_vector_that_is_no_unit_vector_is_named_with_its_row(factor: float, own: Path) -> None:
    forge(own, 1, scaled(5, factor))
    where = f"shard 1 ({shard_file(own, 1)})"
    assert problems(own) == [f"{where}: 1 vectors are not of unit length, the first in row 5"]


def test_text_that_is_not_its_ids_is_named_with_its_row(own: Path) -> None:
    forge(own, 3, retold)
    where = f"shard 3 ({shard_file(own, 3)})"
    assert problems(own) == [f"{where}: 1 texts are not what their ids say, the first in row 3"]


def test_rows_of_another_order_are_found(own: Path) -> None:
    forge(own, 0, swapped)
    assert problems(own) == [f"shard 0 ({shard_file(own, 0)}): its ids are not those of its record"]


def test_rows_of_another_order_are_found_though_every_record_was_made_to_match(own: Path) -> None:
    forge(own, 0, swapped, ids=True)
    of_plan, of_all = problems(own)
    assert of_plan == f"{own / 'plan.json'}: its shards differs from the manifest's"
    assert of_all.startswith(f"{own / 'manifest.json'}: the ids of its shards have the digest ")
    shutil.rmtree(own / "plan")
    (own / "plan.json").unlink()
    assert problems(own) == [of_all]
