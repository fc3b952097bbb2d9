"""The records of a cache: what they accept, and what an identity depends on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from teacher_cache.format import (
    FORMAT_VERSION,
    Block,
    CacheError,
    FileRecord,
    Manifest,
    Plan,
    Pooled,
    canonical_json,
    checksum,
    identity_of,
    plan_path,
    read_json,
    record_path,
    shard_path,
    shard_schema,
)

BLOCK = Block(
    teacher="a",
    offset=0,
    width=3,
    encoder="stella",
    repository="org/a",
    revision="0123",
    fingerprint="ff",
    prompts={"default": "", "asked": "query: "},
    max_tokens=512,
    pooling="mean",
    dtype="bfloat16",
    licence="mit",
)
FILE = FileRecord(rows=2, bytes=100, checksum="0123abcd" * 4, ids_digest="bb")
POOLED = Pooled(teacher="a", width=5, body="ee")
PLAN = Plan(
    format_version=FORMAT_VERSION,
    rows=2,
    held_out_rows=1,
    rows_per_shard=8192,
    ids_digest="cc",
    corpus={"sources": [{"name": "web"}]},
    counts={"web": {"kept": 2}},
    shards=(FILE,),
)
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    identity=identity_of("cc", 1, 8192, [BLOCK], POOLED),
    rows=2,
    held_out_rows=1,
    rows_per_shard=8192,
    width=3,
    dtype="float16",
    ids_digest="cc",
    blocks=(BLOCK,),
    pooled=POOLED,
    corpus=PLAN.corpus,
    counts=PLAN.counts,
    shards=(FILE,),
)


@pytest.mark.parametrize("record", [BLOCK, FILE, PLAN, MANIFEST], ids=lambda r: type(r).__name__)
def test_records_come_back_from_their_json(record: Any) -> None:
    data = json.loads(json.dumps(record.to_json()))
    assert type(record).from_json(data, "here") == record


@pytest.mark.parametrize("record", [FILE, PLAN, MANIFEST], ids=lambda r: type(r).__name__)
def test_record_with_other_fields_is_refused_with_its_place(record: Any) -> None:
    data = record.to_json()
    name = sorted(set(data) - {"format_version"})[0]
    for wrong in ({**data, "extra": 1}, {k: v for k, v in data.items() if k != name}):
        with pytest.raises(CacheError, match=rf"^here: expected the fields .*'{name}'"):
            type(record).from_json(wrong, "here")


@pytest.mark.parametrize("wrong", [[], "text", None, 7])
def test_record_that_is_no_object_is_refused(wrong: Any) -> None:
    with pytest.raises(CacheError, match=r"^here: expected the fields"):
        FileRecord.from_json(wrong, "here")


@pytest.mark.parametrize(
    "wrong", ["../../../../../../../../../etc", "0123ABCD" * 4, "0123abcd", 7, None]
)
def test_checksum_that_is_none_is_refused_as_it_becomes_a_name(wrong: Any) -> None:
    with pytest.raises(
        CacheError, match=r"^here: expected (a checksum|checksum to be text), found "
    ):
        FileRecord.from_json({**FILE.to_json(), "checksum": wrong}, "here")


@pytest.mark.parametrize("wrong", [None, 7, {"a": 1}, [7]])
def test_manifest_whose_shards_are_no_records_is_refused(wrong: Any) -> None:
    data = {**MANIFEST.to_json(), "shards": wrong}
    with pytest.raises(CacheError, match=r"^here: shards: expected "):
        Manifest.from_json(data, "here")


@pytest.mark.parametrize("kind", [Plan, Manifest])
@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, None, "1"])
def test_another_format_version_is_refused(kind: Any, version: object) -> None:
    record = {Plan: PLAN, Manifest: MANIFEST}[kind]
    data = {**record.to_json(), "format_version": version, "added_later": 1}
    with pytest.raises(CacheError, match=f"here: .* format version {version!r}.* reads 2"):
        kind.from_json(data, "here")


@pytest.mark.parametrize("wrong", ["2", 2.0, None, True, [2]])
def test_number_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(CacheError, match="here: expected rows to be a number, found "):
        Manifest.from_json({**MANIFEST.to_json(), "rows": wrong}, "here")


def test_identity_of_a_known_cache_stays_what_it_was() -> None:
    """Another value here means that FORMAT_VERSION must be raised."""
    assert identity_of("cc", 1, 8192, [BLOCK], None) == "35db731a7d8343020bf17c592c9a0cb1"


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "b"},
        {"offset": 1},
        {"width": 4},
        {"encoder": "nv-embed"},
        {"fingerprint": "fe"},
        {"prompts": {"default": "", "asked": "question: "}},
        {"prompts": {"default": "query: "}},
        {"max_tokens": 256},
        {"max_tokens": None},
        {"pooling": "cls"},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_identity_changes_with_what_decides_the_numbers(change: dict[str, Any]) -> None:
    assert identity_of("cc", 1, 8192, [replace(BLOCK, **change)], POOLED) != MANIFEST.identity


def test_identity_changes_with_texts_split_shards_and_order_of_teachers() -> None:
    other = replace(BLOCK, teacher="b")
    identities = {
        identity_of("cc", 1, 8192, [BLOCK], None),
        identity_of("cd", 1, 8192, [BLOCK], None),
        identity_of("cc", 2, 8192, [BLOCK], None),
        identity_of("cc", 1, 4096, [BLOCK], None),
        identity_of("cc", 1, 8192, [BLOCK, other], None),
        identity_of("cc", 1, 8192, [other, BLOCK], None),
        identity_of("cc", 1, 8192, [BLOCK], POOLED),
        identity_of("cc", 1, 8192, [BLOCK], replace(POOLED, body="ef")),
    }
    assert len(identities) == 8


@pytest.mark.parametrize("change", [{"repository": "/x"}, {"revision": None}, {"licence": "?"}])
def test_identity_does_not_ask_where_the_files_came_from(change: dict[str, Any]) -> None:
    assert identity_of("cc", 1, 8192, [replace(BLOCK, **change)], POOLED) == MANIFEST.identity


def test_canonical_json_is_one_spelling_for_equal_data() -> None:
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'


def test_checksum_is_xxh3_128() -> None:
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"


def test_names_are_computed_from_numbers() -> None:
    cache = Path("c")
    assert shard_path(cache, 7, FILE) == Path("c/shards/00007-0123abcd.arrow")
    assert record_path(cache, 123_456) == Path("c/shards/123456.json")
    assert plan_path(cache, 0) == Path("c/plan/00000.arrow")


def test_schema_has_no_nulls_and_fixed_widths() -> None:
    schema = shard_schema(12, 2, 5, {"shard": "0"})
    assert not any(field.nullable for field in schema)
    assert schema.field("embedding").type == pa.list_(pa.float16(), 12)
    assert schema.field("tokens").type.list_size == schema.field("norms").type.list_size == 2
    assert schema.field("pooled").type == pa.list_(pa.float16(), 5)
    assert schema.metadata == {b"shard": b"0"}
    assert shard_schema(12, 2, None, {}).names == schema.names[:-1]


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for content in (b'{"rows": 1', b"\xff\xfe", b""):
        path.write_bytes(content)
        with pytest.raises(CacheError, match=r"plan\.json: not valid JSON"):
            read_json(path)
