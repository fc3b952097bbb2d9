"""Which files a name, a folder or a glob of image–caption pairs stands for, and of which kind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data.files import PACKED, CorpusError, form_of, named

Kind = Literal["captions", "parquet", "tar"]

_CAPTIONS = (".jsonl", ".ndjson", ".csv", ".tsv")
_KNOWN = f"captions ({' '.join(_CAPTIONS)}, each also with {' or '.join(PACKED)}), .parquet or .tar"


def find_pairs(pattern: str, base: Path) -> tuple[Kind, list[Path]]:
    """The files that a name, a folder or a glob (`**` for all folders below) stands for, sorted.

    In a folder, files of other kinds are passed over, since images lie there too, and hidden ones.

    Raises:
        CorpusError: there are none, they are of several kinds, or one that was asked for by name or
            glob cannot be read.
    """
    path, files = base / pattern, named(pattern, base)
    if files is None:
        files = [
            file
            for file in path.iterdir()
            if _kind(file) and file.is_file() and not file.name.startswith(".")
        ]
    if not files:
        what = "in the folder" if path.is_dir() else "a folder with some, or a glob that matches"
        raise CorpusError(f"{path}: expected {_KNOWN} files, {what}; there is no such file")
    for file in files:
        if file.name.lower().endswith((".tgz", ".tar.gz")):
            raise CorpusError(
                f"{file} is packed: images are read at random places of a tar; unpack it with "
                "gunzip"
            )
        if not _kind(file) and form_of(file) != ".json":
            raise CorpusError(f"{file}: expected {_KNOWN}, found {file.suffix or 'no suffix'}")
    # What is not else of a known kind is JSON, a line for each pair.
    kinds: set[Kind] = {_kind(file) or "captions" for file in files}
    if len(kinds) > 1:
        raise CorpusError(f"{path}: expected files of one kind, found {', '.join(sorted(kinds))}")
    return kinds.pop(), sorted(files)


def _kind(file: Path) -> Kind | None:
    if file.suffix.lower() == ".tar":
        return "tar"
    form = form_of(file)
    if form == ".parquet":
        return "parquet"
    return "captions" if form in _CAPTIONS else None
