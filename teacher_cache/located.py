"""Teachers with the folders they lie in: found, fitted where that is needed, loaded, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacher_cache import models
from teacher_cache.encoders import loading
from teacher_cache.encoders.choice import choose
from teacher_cache.encoders.probe import probe
from teacher_cache.encoders.protocol import Encoder, KeepsPooled
from teacher_cache.format import Block, CacheError, Plan, Pooled, teacher_path
from teacher_cache.golden import Golden, hold
from teacher_cache.plan import read_texts
from teacher_cache.ranks import Rank, awaited, wait_for
from teacher_cache.teachers import FITTED_ENCODERS, Teacher


@dataclass(frozen=True, slots=True)
class Located:
    """A teacher and where its files lie (None: it is still to be fitted).

    `body` is the fingerprint of its transformer, where the pooled state is kept.
    """

    teacher: Teacher
    folder: Path | None
    revision: str | None = None
    fingerprint: str = ""
    body: str = ""


def locate(teacher: Teacher, base: Path) -> Located:
    """Find a teacher's files and digest them; relative folders are seen from `base`.

    Raises:
        TeacherError: nothing lies there, the folder is not what the encoder expects, or it has no
            pooled state to keep.
    """
    loading.check_pooled(teacher)
    if teacher.repository is None and teacher.encoder in FITTED_ENCODERS:
        return Located(teacher, None)
    folder, revision = loading.locate(teacher, base)
    return fingerprinted(teacher, folder, revision)


def fit(located: Located, cache: Path, plan: Plan, rank: Rank) -> Located:
    """Fit a teacher that comes with no weights, once; its folder is then like any other's.

    Rank 0 fits, the others wait for it.

    Raises:
        TeacherError: it cannot be fitted on these texts.
        CacheError: its folder has lost a file, or rank 0 is gone.
    """
    if located.folder is not None:
        return located
    folder = teacher_path(cache, located.teacher.name)
    if rank.index == 0:
        with awaited(rank, cache):
            loading.fit(located.teacher, folder, sample_of(cache, plan, located.teacher))
    else:
        what = f"fit the teacher {located.teacher.name!r} of"
        wait_for(what, cache, lambda: folder.is_dir() or None)
    return fingerprinted(located.teacher, folder, None)


def load(
    located: Sequence[Located],
    goldens: Sequence[Golden],
    *,
    device: str,
    token_budget: int | None,
) -> list[Encoder]:
    """Load the teachers; each takes its faster layout and proves what the build relies on.

    Raises:
        TeacherError: a teacher cannot be loaded, fails its check, or gives other vectors than a
            golden file's.
    """
    encoders = []
    for one in located:
        if one.folder is None:
            raise CacheError(f"teacher {one.teacher.name!r} was not fitted yet")
        encoders.append(
            loading.load_encoder(one.teacher, one.folder, device=device, token_budget=token_budget)
        )
    for one, encoder in zip(located, encoders, strict=True):
        choose(encoder, one.teacher)
        probe(encoder, one.teacher)
        hold(encoder, one.teacher, goldens)
    return encoders


def blocks_of(
    located: Sequence[Located], encoders: Sequence[Encoder]
) -> tuple[list[Block], Pooled | None]:
    """The manifest's account of loaded teachers, and of the pooled state that one of them keeps."""
    blocks: list[Block] = []
    pooled = None
    for one, encoder in zip(located, encoders, strict=True):
        blocks.append(
            loading.block_of(
                one.teacher,
                encoder,
                offset=sum(block.width for block in blocks),
                revision=one.revision,
                fingerprint=one.fingerprint,
            )
        )
        if isinstance(encoder, KeepsPooled) and encoder.pooled_width is not None:
            pooled = Pooled(one.teacher.name, encoder.pooled_width, one.body)
    return blocks, pooled


def fingerprinted(teacher: Teacher, folder: Path, revision: str | None) -> Located:
    """A teacher whose folder is known, with the digests of its files.

    Raises:
        TeacherError: the folder is not what the encoder expects.
    """
    files = loading.inspect_files(teacher, folder)
    fingerprint = models.fingerprint(folder, files)
    body = models.body_fingerprint(folder) if teacher.keep_pooled else ""
    return Located(teacher, folder, revision, fingerprint, body)


def sample_of(cache: Path, plan: Plan, teacher: Teacher) -> Iterable[str]:
    """The planned texts that a teacher is fitted on: the first ones that are not held out."""
    wanted = min(teacher.sample or 0, plan.rows - plan.held_out_rows)
    for index in range(len(plan.shards)):
        texts = read_texts(cache, plan, index).texts[:wanted]
        yield from texts
        wanted -= len(texts)
        if wanted == 0:
            return
