"""The vector of a text that is not in a cache: its teachers loaded again, exactly those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np

from teacher_cache import models
from teacher_cache.encoders import loading
from teacher_cache.format import Block, CacheError, teacher_path
from teacher_cache.reader import CacheReader
from teacher_cache.search import Float16
from teacher_cache.teachers import DEFAULT_PROMPT, TEACHERS, Dtype, EncoderKind, Teacher


@dataclass(frozen=True, slots=True)
class _Located:
    block: Block
    teacher: Teacher
    folder: Path


def encode(
    reader: CacheReader,
    text: str,
    blocks: Sequence[Block],
    *,
    source: str = DEFAULT_PROMPT,
    folders: Mapping[str, Path] = {},
    device: str = "cpu",
    tell: Callable[[str], None] = lambda _: None,
) -> Float16:
    """What the row of a text would be, at the cache's width [W], 0 outside of the named blocks.

    The text gets the prompt of a corpus source. `folders` says where a teacher's model lies, by
    name, instead of where it lay for the build; nothing is fetched from a hub. All models are
    found and compared with the cache's fingerprints before one is loaded; `tell` is told of each.

    Raises:
        CacheError: a model is not here or is not the one the cache was made with, or it gives no
            vector for this text.
        TeacherError: a model cannot be loaded.
    """
    located = [_locate(reader, block, folders.get(block.teacher)) for block in blocks]
    row = np.zeros(reader.manifest.width, np.float16)
    share = 1 / np.sqrt(len(reader.teachers))
    for found in located:
        tell(f"encoding the text with {found.block.teacher} from {found.folder}")
        encoder = loading.load_encoder(
            found.teacher, found.folder, device=device, token_budget=None
        )
        prepared = encoder.prepare([text], [found.teacher.prompt_for(source)])
        vector = encoder.encode(prepared, lambda _: None).vectors[0]
        norm = np.float32(np.linalg.norm(vector.astype(np.float64)))
        if not 0 < norm < np.inf:
            raise CacheError(
                f"teacher {found.block.teacher!r} has no vector for this text: it knows no part "
                "of it"
            )
        row[found.block.columns] = vector * np.float32(share / norm)
    return row


def _locate(reader: CacheReader, block: Block, given: Path | None) -> _Located:
    teacher = _teacher(block)
    try:
        folder = given or _folder(reader, block)
        found = models.fingerprint(folder, loading.inspect_files(teacher, folder))
    except (models.ModelError, OSError) as error:
        raise CacheError(f"{error}; {_advice(block, reader)}") from None
    if found != block.fingerprint:
        raise CacheError(
            f"teacher {block.teacher!r}: the model in {folder} has the fingerprint {found}, the "
            f"cache was made with {block.fingerprint}; {_advice(block, reader)}"
        )
    return _Located(block, teacher, folder)


def _teacher(block: Block) -> Teacher:
    if block.encoder not in get_args(EncoderKind):
        raise CacheError(f"teacher {block.teacher!r}: there is no encoder {block.encoder!r} here")
    return Teacher(
        name=block.teacher,
        encoder=cast(EncoderKind, block.encoder),
        repository=block.repository,
        licence=block.licence,
        revision=block.revision,
        width=block.width,
        prompts=block.prompts,
        max_tokens=block.max_tokens,
        dtype=cast(Dtype, block.dtype),
    )


def _folder(reader: CacheReader, block: Block) -> Path:
    if block.fitted:
        return teacher_path(reader.path, block.teacher)
    what = f"teacher {block.teacher!r}"
    if _is_hub_id(block.repository):
        return _fetched_before(block, what)
    known = {teacher.repository for teacher in TEACHERS.values()}
    if block.repository.startswith(models.PACKAGE_PREFIX) and block.repository not in known:
        # To ask a package for its folder is to run its code, and the cache may be a stranger's.
        raise models.ModelError(
            f"{what}: expected a model of the table of teachers, a folder or a hub's, found "
            f"{block.repository}: no package is imported because a cache names it"
        )
    return models.locate(block.repository, what=what)[0]


def _is_hub_id(repository: str) -> bool:
    is_path = repository.startswith((models.PACKAGE_PREFIX, ".", "/", "~"))
    return not is_path and repository.count("/") == 1 and not Path(repository).is_dir()


def _fetched_before(block: Block, what: str) -> Path:
    """The folder of a model that a build fetched here; for a search none is fetched."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            block.repository,
            revision=block.revision,
            allow_patterns=models.HUB_PATTERNS,
            local_files_only=True,
        )
    except Exception:  # the hub client raises from several libraries' hierarchies
        raise models.ModelError(f"{what}: {block.repository} is not on this machine") from None
    return Path(folder)


def _advice(block: Block, reader: CacheReader) -> str:
    others = ",".join(name for name in reader.teachers if name != block.teacher)
    leave = f", leave it out with --teachers {others}" if others else ""
    return f"give its folder with --model {block.teacher}=FOLDER{leave}, or ask for a row instead"
