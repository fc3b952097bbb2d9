"""How far an unfinished plan has come: what a planner that goes on needs, and nothing else.

It lies in `plan/unfinished/` until the plan is finished: `state.json`, and the held-out texts so
far, which the plan's own files will hold at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from teacher_cache.files import commit_bytes, remove_folder
from teacher_cache.finish import first_difference
from teacher_cache.format import (
    FORMAT_VERSION,
    JSON_BYTES,
    PLAN_FOLDER,
    PLAN_SCHEMA,
    CacheError,
    FileRecord,
    Record,
    checksum,
    plan_path,
    read_json,
    regular_file,
)
from teacher_cache.opening import unpack
from teacher_cache.writer import Texts, json_of, write_plan_file

LARGEST = 1 << 32
"""Bytes that a file of the plan may unpack to: its texts, in Arrow's `utf8`, are under 2 GiB."""


@dataclass(frozen=True)
class Progress(Record):
    """A plan up to its last saved shard.

    `shards` are the plan's files so far; `held_out` those that keep the held-out texts, each under
    the number of shards there were when it was written; `state` is where the corpus stands.
    """

    format_version: int
    corpus: Mapping[str, Any]
    rows_per_shard: int
    shards: tuple[FileRecord, ...]
    held_out: Mapping[str, FileRecord]
    state: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """Read a saved state; what it lists become records."""
        progress = super().from_json(data, where).with_records(where, shards=FileRecord)
        held_out = {
            number: FileRecord.from_json(record, f"{where}: held_out")
            for number, record in data["held_out"].items()
        }
        return replace(progress, held_out=held_out)

    @property
    def rows(self) -> int:
        """Texts planned so far, held-out ones included."""
        return sum(record.rows for record in (*self.shards, *self.held_out.values()))


def is_unfinished(cache: Path) -> bool:
    """Whether planning was broken off there, with its state saved."""
    return _state_path(cache).exists()


def read_progress(cache: Path, corpus: Mapping[str, Any], rows_per_shard: int) -> Progress | None:
    """How far the plan of a cache has come; None where nothing was saved.

    Raises:
        CacheError: it is the plan of another corpus, or of shards of another size.
    """
    path = _state_path(cache)
    if not path.exists():
        return None
    progress = Progress.from_json(read_json(path), str(path))
    found = {name: getattr(progress, name) for name in ("format_version", "rows_per_shard")}
    asked = {"format_version": FORMAT_VERSION, "rows_per_shard": rows_per_shard}
    difference = first_difference(found, asked, "plan") or first_difference(
        progress.corpus, corpus, "corpus"
    )
    if difference:
        raise CacheError(
            f"{cache} has an unfinished plan of another corpus: {difference}; "
            "build into another folder, or with the recipe it was begun with"
        )
    return progress


def save_progress(cache: Path, progress: Progress) -> None:
    """Commit how far a plan has come; all that it names must be committed already.

    A state that could not be read back stays unsaved: in the middle of a row of very many texts
    it holds those that are to come. From the one before, the plan goes on as well.
    """
    data = json_of(progress)
    if len(data) <= JSON_BYTES:
        commit_bytes(_state_path(cache), data)


def keep_held_out(cache: Path, shards: int, texts: Texts) -> FileRecord:
    """Commit texts that were held out before the plan had so many shards."""
    return write_plan_file(_folder(cache), shards, texts)


def kept_held_out(cache: Path, held_out: Mapping[str, FileRecord]) -> Iterator[Texts]:
    """The held-out texts so far, file by file, in order.

    Raises:
        CacheError: a file is missing or is not what was committed.
    """
    for shards in sorted(map(int, held_out)):
        path = plan_path(_folder(cache), shards)
        yield read_committed(path, held_out[str(shards)], f"the unfinished plan of {cache}")


def clear_progress(cache: Path) -> None:
    """Forget how far a plan has come: it is finished."""
    remove_folder(_folder(cache))


def read_committed(path: Path, expected: FileRecord, owner: str) -> Texts:
    """The texts of a plan's file, checked against its record.

    Raises:
        CacheError: the file is missing or is not what was committed.
    """
    try:
        size = regular_file(path).st_size
    except FileNotFoundError:
        raise CacheError(f"{path} is missing: {owner} lists it") from None
    if size != expected.bytes:
        raise CacheError(f"{path} has {size} bytes but the plan says {expected.bytes}")
    data = path.read_bytes()
    found = checksum(data)
    if found != expected.checksum:
        raise CacheError(f"{path} has checksum {found} but the plan says {expected.checksum}")
    texts = _texts(data, path)
    if (len(texts), texts.ids_digest) != (expected.rows, expected.ids_digest):
        raise CacheError(f"{path} holds other rows than the plan says")
    return texts


def read_unlisted(path: Path) -> tuple[FileRecord, Texts]:
    """A plan's file that no record tells of: what it holds, and the record that is true of it.

    Raises:
        CacheError: it is no such file.
        FileNotFoundError: nothing lies there.
    """
    regular_file(path)
    data = path.read_bytes()
    texts = _texts(data, path)
    return FileRecord(len(texts), len(data), checksum(data), texts.ids_digest), texts


def _texts(data: bytes, path: Path) -> Texts:
    batch = unpack(data, PLAN_SCHEMA, str(path), LARGEST)
    return Texts(*(batch.column(name).to_pylist() for name in ("id", "text", "source")))


def _folder(cache: Path) -> Path:
    return cache / PLAN_FOLDER / "unfinished"


def _state_path(cache: Path) -> Path:
    return _folder(cache) / "state.json"
