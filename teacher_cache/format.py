"""The contract between who writes a cache and who reads it: names, schema, records, identity.

The specification in prose is `docs/cache-format.md`. This module knows no I/O beyond reading and
parsing small JSON files, and imports numpy, pyarrow and xxhash alone.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args

import pyarrow as pa
import xxhash

FORMAT_VERSION = 2
"""Raised whenever a cache written before can no longer be read, or would be read differently."""

ROWS_PER_SHARD = 8192
"""The unit of work, of crash and of resume: 201 MB of vectors at 12,288 wide."""

ID_BYTES = 16
VECTOR_DTYPE = "float16"

ShardFormat = Literal["arrow", "parquet"]
"""How a shard's rows are laid out in its file; the same rows either way."""

PLAN_FILE = "plan.json"
BUILD_FILE = "build.json"
MANIFEST_FILE = "manifest.json"
PLAN_FOLDER = "plan"
SHARD_FOLDER = "shards"
TEACHER_FOLDER = "teachers"

FITTED = "fitted:"
"""How the repository of a teacher begins that was fitted on the corpus and lies in the cache."""

_CHECKSUM = re.compile(r"[0-9a-f]{32}")
JSON_BYTES = 1 << 25
"""The largest JSON file that is read: the manifest of 8 million rows has 200 kB."""

_KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, NoneType),
    "str": (str,),
    "str | None": (str, NoneType),
    "Mapping[str, str]": (dict,),
    "Mapping[str, Any]": (dict,),
}
"""What JSON gives for a field of that type; fields of other types are read by who knows them."""

_IN_WORDS: Mapping[type, str] = {int: "a number", str: "text", dict: "a table of texts"}


class CacheError(Exception):
    """An expected failure of a cache: one line that says what, where, and what to do next."""


@dataclass(frozen=True)
class Record:
    """What every JSON record of a cache can do: to and from plain data, checked by field name."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a record; `where` names the file in the error when a field is missing or unknown."""
        known = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            found = shortened(sorted(data)) if isinstance(data, Mapping) else type(data).__name__
            raise CacheError(f"{where}: expected the fields {sorted(known)}, found {found}")
        for field in fields(cls):
            value = data[field.name]
            kinds = _KINDS.get(str(field.type), (type(value),))
            fits = type(value) in kinds
            if fits and field.type == "Mapping[str, str]":
                fits = all(isinstance(item, str) for item in value.values())
            if not fits:
                raise CacheError(
                    f"{where}: expected {field.name} to be {_IN_WORDS[kinds[0]]}, "
                    f"found {shortened(value)}"
                )
        return cls(**data)

    def with_records(self, where: str, **kinds: type[Record]) -> Self:
        """The same record with the lists named in `kinds` parsed into records of that kind."""
        lists = {}
        for name, kind in kinds.items():
            items = getattr(self, name)
            if not isinstance(items, list | tuple):
                raise CacheError(f"{where}: {name}: expected a list, found {shortened(items)}")
            lists[name] = tuple(kind.from_json(item, f"{where}: {name}") for item in items)
        return replace(self, **lists)


@dataclass(frozen=True)
class Block(Record):
    """One teacher's slice of the vector, and everything that decides its numbers.

    `prompts` maps a corpus source to the text put before each of its texts; the key `default`
    stands for every other source. `fingerprint` digests the files that were read (weights,
    configuration, tokenizer); `revision` is the hub commit where there is one.
    """

    teacher: str
    offset: int
    width: int
    encoder: str
    repository: str
    revision: str | None
    fingerprint: str
    prompts: Mapping[str, str]
    max_tokens: int | None
    pooling: str
    dtype: str
    licence: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a block. Refuses a name that could not be a folder's: it may become one."""
        block = super().from_json(data, where)
        if not is_folder_name(block.teacher):
            raise CacheError(f"{where}: expected the name of a teacher, found {block.teacher!r}")
        return block

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers: not where the files came from, but what was in them."""
        facts = self.to_json()
        for name in ("repository", "revision", "licence"):
            del facts[name]
        return facts

    @property
    def fitted(self) -> bool:
        """Whether the teacher was fitted on the corpus, and lies in the cache if it was kept."""
        return self.repository.startswith(FITTED)

    @property
    def columns(self) -> slice:
        """The columns of the concatenated vector that belong to this teacher."""
        return slice(self.offset, self.offset + self.width)


@dataclass(frozen=True)
class Pooled(Record):
    """The pooled state of one teacher's body, kept for students that start as that body.

    `body` is the digest of what such a student is read from (`models.body_fingerprint`); prompts,
    longest input and dtype are those of the teacher's block.
    """

    teacher: str
    width: int
    body: str


@dataclass(frozen=True)
class FileRecord(Record):
    """A committed file of rows: its row count, size, checksum, digest of its ids, and format."""

    rows: int
    bytes: int
    checksum: str
    ids_digest: str
    format: ShardFormat = "arrow"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a record. Refuses what is no checksum or format: both are parts of a file's name."""
        record = super().from_json(data, where)
        if not _CHECKSUM.fullmatch(record.checksum):
            raise CacheError(f"{where}: expected a checksum, found {shortened(record.checksum)}")
        if record.format not in get_args(ShardFormat):
            raise CacheError(
                f"{where}: expected the format arrow or parquet, found {shortened(record.format)}"
            )
        return record


@dataclass(frozen=True)
class Plan(Record):
    """Which texts, in which order. Held-out texts come last.

    `corpus` is the specification as the recipe gave it, `counts` what reading it found, per
    source. `shards` describes the plan's own files, one for each shard to be encoded.
    """

    format_version: int
    rows: int
    held_out_rows: int
    rows_per_shard: int
    ids_digest: str
    corpus: Mapping[str, Any]
    counts: Mapping[str, Any]
    shards: tuple[FileRecord, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a plan; the shards become records. Refuses another format version."""
        _check_version(data, where)
        return super().from_json(data, where).with_records(where, shards=FileRecord)


@dataclass(frozen=True)
class Manifest(Record):
    """What a finished cache holds. Its presence is what makes a cache finished."""

    format_version: int
    identity: str
    rows: int
    held_out_rows: int
    rows_per_shard: int
    width: int
    dtype: str
    ids_digest: str
    blocks: tuple[Block, ...]
    pooled: Pooled | None
    corpus: Mapping[str, Any]
    counts: Mapping[str, Any]
    shards: tuple[FileRecord, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a manifest; its parts become records. Refuses another format version."""
        _check_version(data, where)
        manifest = super().from_json(data, where)
        manifest = replace(manifest, pooled=read_pooled(manifest.pooled, where))
        return manifest.with_records(where, blocks=Block, shards=FileRecord)


def read_pooled(data: Any, where: str) -> Pooled | None:
    """The record of the pooled column, as JSON has it; None where a cache keeps none."""
    return None if data is None else Pooled.from_json(data, f"{where}: pooled")


def _check_version(data: Mapping[str, Any], where: str) -> None:
    version = data.get("format_version") if isinstance(data, Mapping) else None
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{where}: the cache has format version {version!r}, this program reads "
            f"{FORMAT_VERSION}; build it again or use the release that wrote it"
        )


def shard_schema(
    width: int, teachers: int, pooled: int | None, metadata: Mapping[str, str]
) -> pa.Schema:
    """The columns of a shard.

    `embedding` is the normalised concatenation, one contiguous float16 run per shard; `norms` and
    `tokens` hold, for each block, the raw L2 norm before normalisation and the number of tokens
    the teacher saw. `pooled`, where it is kept, is that many columns wide and not normalised.
    """
    columns = [
        pa.field("id", pa.binary(ID_BYTES), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32(), teachers), nullable=False),
        pa.field("norms", pa.list_(pa.float32(), teachers), nullable=False),
        pa.field("embedding", pa.list_(pa.float16(), width), nullable=False),
    ]
    if pooled is not None:
        columns.append(pa.field("pooled", pa.list_(pa.float16(), pooled), nullable=False))
    return pa.schema(columns, metadata=dict(metadata))


PLAN_SCHEMA = pa.schema(
    [
        pa.field("id", pa.binary(ID_BYTES), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)


def shard_path(cache: Path, index: int, record: FileRecord) -> Path:
    """Where the shard `index` of this record lies: checksum and format are parts of its name.

    So a file, once it has its name, never changes, and two builders that come to different bytes
    for one shard do not overwrite each other: the record says which file is the shard.
    """
    return cache / SHARD_FOLDER / f"{index:05d}-{record.checksum[:8]}.{record.format}"


def record_path(cache: Path, index: int) -> Path:
    """The commit record of shard `index`: the shard exists when this file does."""
    return cache / SHARD_FOLDER / f"{index:05d}.json"


def plan_path(cache: Path, index: int) -> Path:
    """The texts of shard `index`, as planned."""
    return cache / PLAN_FOLDER / f"{index:05d}.arrow"


def teacher_path(cache: Path, name: str) -> Path:
    """The folder of a fitted teacher."""
    return cache / TEACHER_FOLDER / name


def checksum(data: bytes | memoryview) -> str:
    """The digest used everywhere here: XXH3-128, in hexadecimal. Finds damage, not malice."""
    return xxhash.xxh3_128_hexdigest(data)


def canonical_json(data: Any) -> str:
    """One spelling for equal data: sorted keys, no spaces. What identities are digests of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def identity_of(
    ids_digest: str,
    held_out_rows: int,
    rows_per_shard: int,
    blocks: Sequence[Block],
    pooled: Pooled | None,
) -> str:
    """The identity of a cache: these texts, in this order, under these teachers.

    Two caches with the same identity hold the same rows; a build or a training run that finds
    another identity than it started with is refused.
    """
    facts = {
        "format_version": FORMAT_VERSION,
        "ids": ids_digest,
        "held_out_rows": held_out_rows,
        "rows_per_shard": rows_per_shard,
        "blocks": [block.decisive() for block in blocks],
        "pooled": None if pooled is None else pooled.to_json(),
    }
    return checksum(canonical_json(facts).encode())


def is_folder_name(name: str) -> bool:
    """Whether a teacher of that name can have a folder of that name: no path, nothing hidden."""
    return (
        name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\")
        and name != ""
    )


def shortened(value: Any) -> str:
    """What was found, for an error: however much it is, one line."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def regular_file(path: Path) -> os.stat_result:
    """What lies there, which must be a file of the cache itself: no link to elsewhere, no pipe.

    Raises:
        CacheError: it is something else.
        FileNotFoundError: nothing lies there.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a pipe, socket or device")
        raise CacheError(f"{path} is {kind}, expected a file: a cache holds all that is read of it")
    return status


def read_json(path: Path) -> Any:
    """Parse a small JSON file of a cache.

    Raises:
        CacheError: the file is not JSON, far too large, or no file at all.
        FileNotFoundError: there is no such file.
    """
    size = regular_file(path).st_size
    if size > JSON_BYTES:
        raise CacheError(f"{path} has {size} bytes, expected at most {JSON_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise CacheError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise CacheError(f"{path}: not valid JSON ({error})") from None
