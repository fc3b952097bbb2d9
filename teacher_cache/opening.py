"""Opening a cache as the data of a stranger: nothing in it is run, followed, or believed.

Whatever lies in the folder: to open and read it runs no code, reads nothing outside of the folder,
waits for nothing and takes no more memory than the files are large. What is expected of a file is
known from the manifest before it is touched, and the manifest is checked against itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import xxhash

from teacher_cache.format import (
    MANIFEST_FILE,
    PLAN_FILE,
    SHARD_FOLDER,
    VECTOR_DTYPE,
    CacheError,
    FileRecord,
    Manifest,
    identity_of,
    read_json,
    regular_file,
    shard_path,
    shard_schema,
    shortened,
)
from teacher_cache.mapping import map_file

_CHUNK = 1 << 24
_MAGIC = b"ARROW1\0\0"
_UNREADABLE = (pa.ArrowException, ValueError, OSError, EOFError, struct.error)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished cache, which agrees with itself.

    Raises:
        CacheError: there is none, or it was changed.
    """
    file = path / MANIFEST_FILE
    try:
        data = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        if (path / PLAN_FILE).exists():
            raise CacheError(
                f"{path} is unfinished: it has a plan but no {MANIFEST_FILE}; "
                "finish it with the jasper-cache build that began it"
            ) from None
        raise CacheError(
            f"{path} is no cache: expected a folder with {MANIFEST_FILE}; "
            f"write one with: jasper-cache build --recipe RECIPE --out {path}"
        ) from None
    manifest = Manifest.from_json(data, str(file))
    found = identity_of(
        manifest.ids_digest,
        manifest.held_out_rows,
        manifest.rows_per_shard,
        manifest.blocks,
        manifest.pooled,
    )
    if found != manifest.identity:
        raise CacheError(
            f"{file}: what it describes has the identity {found}, but it claims "
            f"{manifest.identity}: the file was changed"
        )
    if not _adds_up(manifest):
        raise CacheError(f"{file}: its rows, widths or sizes do not add up: the file was changed")
    return manifest


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Every shard's file is there, a file, and of the recorded size: one look at each.

    Raises:
        CacheError: one is not.
    """
    check_folder(path / SHARD_FOLDER)
    for index, record in enumerate(manifest.shards):
        shard = shard_path(path, index, record)
        try:
            size = regular_file(shard).st_size
        except FileNotFoundError:
            size = None
        if size != record.bytes:
            raise CacheError(
                f"{shard} has {'no' if size is None else size} bytes, its record says "
                f"{record.bytes}; see what else is wrong with: jasper-cache verify {path}"
            )


def check_checksums(path: Path, manifest: Manifest, advance: Callable[[int], None]) -> None:
    """Every shard has the checksum of its record; `advance` is told of every one.

    Raises:
        CacheError: one has not.
    """
    for index, record in enumerate(manifest.shards):
        shard = shard_path(path, index, record)
        found = file_checksum(shard)
        if found != record.checksum:
            raise CacheError(
                f"shard {index} ({shard}) has checksum {found} but its record says "
                f"{record.checksum}; mend it with: jasper-cache repair {path}"
            )
        advance(1)


def check_folder(folder: Path) -> None:
    """A folder of a cache is one, and no link to a place outside.

    Raises:
        CacheError: it is a link.
    """
    if folder.is_symlink():
        raise CacheError(
            f"{folder} is a symbolic link, expected a folder: a cache holds all that is read of it"
        )


def file_checksum(path: Path) -> str:
    """XXH3-128 of a file, in hexadecimal, read in pieces."""
    digest = xxhash.xxh3_128()
    regular_file(path)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def expected_schema(manifest: Manifest, number: int) -> pa.Schema:
    """The columns that a shard of this cache has in this place, and the metadata it must have."""
    return shard_schema(
        manifest.width,
        len(manifest.blocks),
        None if manifest.pooled is None else manifest.pooled.width,
        {"identity": manifest.identity, "shard": str(number)},
    )


def map_shard(path: Path, record: FileRecord, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a shard where they lie in its file, mapped into memory.

    The metadata of `schema` are those that the file must have, among others.

    Raises:
        CacheError: the file is missing, of another cache or place, has other columns, is compressed
            or damaged.
    """
    try:
        check_folder(path.parent)
        size = regular_file(path).st_size
        with pa.BufferReader(map_file(path)) as source:
            batch = _batch(source, schema, largest=0)
        if batch.num_rows != record.rows:
            raise ValueError(f"it has {batch.num_rows} rows, its record says {record.rows}")
        if size != record.bytes:
            raise ValueError(f"it has {size} bytes, its record says {record.bytes}")
        return batch
    except _UNREADABLE as error:
        raise CacheError(f"{path} cannot be read: {error}") from None


def unpack(data: bytes, schema: pa.Schema, where: str, largest: int) -> pa.RecordBatch:
    """The rows of an Arrow file in memory, whose columns may be compressed.

    Raises:
        CacheError: other columns, more than `largest` bytes of them, or damage.
    """
    try:
        with pa.BufferReader(data) as source:
            return _batch(source, schema, largest=largest)
    except _UNREADABLE as error:
        raise CacheError(f"{where} cannot be read: {error}") from None


def check_schema(found: pa.Schema, schema: pa.Schema) -> None:
    """Refuse other columns than expected, and the metadata of another cache or place.

    Raises:
        ValueError: it is another schema.
    """
    metadata = found.metadata or {}
    for key, value in (schema.metadata or {}).items():
        if metadata.get(key) != value:
            raise ValueError(
                f"its {key.decode()} is {shortened(metadata.get(key))}, expected {value!r}: "
                "the file belongs elsewhere"
            )
    if found != schema:
        raise ValueError("it has other columns than expected")


def _batch(source: pa.NativeFile, schema: pa.Schema, largest: int) -> pa.RecordBatch:
    """The one record batch of an Arrow file, read from the front.

    The footer, which could point anywhere, is not needed. The schema is compared before a column is
    touched: no extension type, dictionary or nesting of another's is ever made.
    """
    if source.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no Arrow file")
    found = pa.ipc.read_schema(pa.ipc.read_message(source))
    check_schema(found, schema)
    message = pa.ipc.read_message(source)
    unpacked = _unpacked_bytes(message)
    if unpacked is not None and unpacked > largest:
        raise ValueError(
            f"its columns unpack to {unpacked} bytes, expected at most {largest}"
            if largest
            else "its columns are compressed, expected plain ones"
        )
    batch = pa.ipc.read_record_batch(message, found)
    # Reads texts and no vectors. Where a text's offset is damaged, to use it could end the process:
    # Arrow follows it wherever it points.
    batch.validate(full=True)
    for column in batch.columns:
        nested = pa.types.is_fixed_size_list(column.type)
        if column.null_count or (nested and column.flatten().null_count):
            raise ValueError("a value is missing")
    return batch


def _unpacked_bytes(message: pa.Message) -> int | None:
    """How large the compressed buffers of a record batch say they are; None if it has none.

    Arrow would first allocate what a buffer claims, however much that is. What is read here is the
    Flatbuffers table `RecordBatch` of Arrow's format, with its fields length, nodes, buffers and
    compression; Arrow has checked that its offsets lie inside the message.
    """
    data = bytes(message.metadata)
    header = _field(data, struct.unpack_from("<I", data)[0], 2)
    batch = header + struct.unpack_from("<I", data, header)[0]
    if not _field(data, batch, 3):
        return None
    buffers = _field(data, batch, 2)
    first = buffers + struct.unpack_from("<I", data, buffers)[0]
    (count,) = struct.unpack_from("<I", data, first)
    claimed = 0
    for number in range(count):
        offset, length = struct.unpack_from("<qq", data, first + 4 + 16 * number)
        if length:
            (size,) = struct.unpack_from("<q", message.body, offset)
            claimed += length if size < 0 else size  # -1: this one is plain
    return claimed


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a Flatbuffers table lies; 0 if the table does not have it."""
    slots = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", data, slots)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, slots + place)[0]
    return table + offset if offset else 0


def _adds_up(manifest: Manifest) -> bool:
    rows = [shard.rows for shard in manifest.shards]
    widths = [block.width for block in manifest.blocks]
    ends = [block.columns.stop for block in manifest.blocks]
    kept = manifest.pooled
    bytes_of_row = 2 * manifest.width + (2 * kept.width if kept else 0)
    return (
        sum(rows) == manifest.rows
        and all(count == manifest.rows_per_shard for count in rows[:-1])
        and all(0 < count <= manifest.rows_per_shard for count in rows[-1:])
        and 0 <= manifest.held_out_rows < manifest.rows
        and all(width > 0 for width in widths)
        and [0, *ends[:-1]] == [block.offset for block in manifest.blocks]
        and ends[-1:] == [manifest.width]
        and manifest.dtype == VECTOR_DTYPE
        and (kept is None or kept.width > 0)
        and all(_holds(shard, bytes_of_row) for shard in manifest.shards)
    )


def _holds(shard: FileRecord, bytes_of_row: int) -> bool:
    """Whether a file of that size can hold its vectors: they are not compressed."""
    return shard.bytes >= shard.rows * bytes_of_row
