"""From a row of the table to a folder on disk, and from there to a loaded encoder.

Each encoder module offers two functions: `files(folder, teacher)`, which names every file it will
read and refuses, before any weight is loaded, a folder that is not what it expects; and
`load(folder, teacher, device=…, token_budget=…)`, which gives the `Encoder` (a budget of None is
the device's default). A teacher without published weights adds `fit`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from teacher_cache import models
from teacher_cache.encoders.device import check_device
from teacher_cache.encoders.protocol import Encoder, KnowsItsLimit
from teacher_cache.files import commit_folder, remove_folder
from teacher_cache.format import FITTED, Block
from teacher_cache.teachers import EncoderKind, Teacher, TeacherError

MODULES: Mapping[EncoderKind, str] = {
    "sentence-transformers": "teacher_cache.encoders.sentence_transformer",
    "tfidf-svd": "teacher_cache.encoders.tfidf_svd",
    "stella": "teacher_cache.encoders.stella",
    "nv-embed": "teacher_cache.encoders.nv_embed",
}

KEEP_POOLED: tuple[EncoderKind, ...] = ("stella", "sentence-transformers")
"""The encoders that can give the pooled state of their body beside their vectors."""


def locate(teacher: Teacher, base: Path = Path()) -> tuple[Path, str | None]:
    """The folder of a teacher's files, and the hub commit where it came from a hub.

    Raises:
        ModelError: the row has no repository, or nothing lies there.
    """
    what = f"teacher {teacher.name!r}"
    if teacher.repository is None:
        raise TeacherError(f"{what} needs a `path`: the folder of its model")
    return models.locate(teacher.repository, teacher.revision, what=what, base=base)


def inspect_files(teacher: Teacher, folder: Path) -> list[Path]:
    """Every file this teacher will be read from; the early check of its folder.

    Raises:
        TeacherError: the folder is not what the encoder expects.
    """
    check_pooled(teacher)
    files: list[Path] = _module(teacher).files(folder, teacher)
    return files


def check_pooled(teacher: Teacher) -> None:
    """Refuse to keep a pooled state that the teacher does not have.

    Raises:
        TeacherError: it has none.
    """
    if teacher.keep_pooled and teacher.encoder not in KEEP_POOLED:
        raise TeacherError(
            f"teacher {teacher.name!r}: keep_pooled needs a body whose states are averaged as a "
            f"student's are ({', '.join(KEEP_POOLED)}); {teacher.encoder} pools otherwise"
        )


def fit(teacher: Teacher, folder: Path, texts: Iterable[str]) -> None:
    """Fit a teacher that has no weights of its own on sample texts, and keep it in `folder`.

    Does nothing where it was fitted before: a fitted teacher never changes. The folder appears
    whole, and of several builders who fit one teacher the first one's stays.
    """
    if not folder.is_dir():
        commit_folder(folder, lambda aside: _module(teacher).fit(aside, teacher, texts))


def fit_again(teacher: Teacher, folder: Path, texts: Iterable[str], fingerprint: str) -> None:
    """Fit a teacher whose folder was damaged, and replace it, if the same teacher comes of it.

    Raises:
        TeacherError: another one does.
    """

    def fill(aside: Path) -> None:
        _module(teacher).fit(aside, teacher, texts)
        found = models.fingerprint(aside, inspect_files(teacher, aside))
        if found != fingerprint:
            raise TeacherError(
                f"teacher {teacher.name!r}: fitted again, its fingerprint is {found}, but the "
                f"cache was built with {fingerprint}: mend it on a machine like that it was "
                "fitted on, or from a copy"
            )
        remove_folder(folder)

    commit_folder(folder, fill)


def load_encoder(
    teacher: Teacher, folder: Path, *, device: str, token_budget: int | None
) -> Encoder:
    """Load a teacher's weights onto a device, ready to encode.

    Raises:
        TeacherError: there is no such device, the folder is not what the encoder expects, or widths
            do not match.
    """
    check_device(device)
    encoder: Encoder = _module(teacher).load(
        folder, teacher, device=device, token_budget=token_budget
    )
    if teacher.width is not None and encoder.width != teacher.width:
        raise TeacherError(
            f"teacher {teacher.name!r} should give vectors {teacher.width} wide, "
            f"the model in {folder} gives {encoder.width}"
        )
    return encoder


def declared(teacher: Teacher, fingerprint: str) -> dict[str, Any]:
    """What is known of a block before its teacher is loaded, by the block's field names."""
    facts: dict[str, Any] = {
        "encoder": teacher.encoder,
        "fingerprint": fingerprint,
        "prompts": dict(teacher.prompts),
        "max_tokens": teacher.max_tokens,
        "dtype": teacher.dtype,
    }
    if teacher.width is not None:
        facts["width"] = teacher.width
    return facts


def may_read(teacher: Teacher, limit: int | None) -> bool:
    """Whether that may be the longest input of a teacher that is not loaded yet.

    A sentence-transformers folder may have a lower limit than the recipe, and what counts n-grams
    has none.
    """
    if limit == teacher.max_tokens:
        return True
    if teacher.encoder == "sentence-transformers":
        return limit is not None and (teacher.max_tokens is None or limit < teacher.max_tokens)
    return teacher.encoder == "tfidf-svd" and limit is None


def block_of(
    teacher: Teacher, encoder: Encoder, *, offset: int, revision: str | None, fingerprint: str
) -> Block:
    """The manifest's account of a loaded teacher: what it does, where a recipe leaves that open."""
    limit = encoder.max_tokens if isinstance(encoder, KnowsItsLimit) else teacher.max_tokens
    found = {"width": encoder.width, "max_tokens": limit}
    return Block(
        teacher=teacher.name,
        offset=offset,
        repository=teacher.repository or FITTED + teacher.encoder,
        revision=revision,
        pooling=encoder.pooling,
        licence=teacher.licence,
        **{**declared(teacher, fingerprint), **found},
    )


def _module(teacher: Teacher) -> Any:
    return importlib.import_module(MODULES[teacher.encoder])
