"""Where the shard of a committed record lies, for tests that damage it."""

from pathlib import Path

from teacher_cache.format import FileRecord, read_json, record_path, shard_path


def shard_file(cache: Path, index: int) -> Path:
    """The file that the commit record of shard `index` names."""
    place = record_path(cache, index)
    return shard_path(cache, index, FileRecord.from_json(read_json(place), str(place)))
