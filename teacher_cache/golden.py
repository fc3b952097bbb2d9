"""Golden vectors: what a teacher's original code gave for 64 texts, and what every later one must.

A golden file is a safetensors file that any environment can write (`docs/golden-vectors.md` has the
lines for each family): one float32 tensor `vectors` [n, width], of any length, and in its metadata

    texts       the inputs as JSON lines, `{"prompt": …, "text": …}`, row by row
    teacher     the name of the teacher's row
    max_tokens  at how many tokens, prompt and special tokens included, an input was cut

Other keys are notes. A golden file is a check and no part of a cache's identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teacher_cache import models
from teacher_cache.encoders import loading
from teacher_cache.encoders.probe import probe
from teacher_cache.encoders.protocol import Encoded, Encoder, FloatArray, IntArray
from teacher_cache.files import commit_bytes
from teacher_cache.golden_texts import GoldenText, from_lines, golden_texts, to_lines
from teacher_cache.teachers import Teacher, TeacherError

MIN_COSINE = 0.9995
"""Between a teacher's vector and its reference. Rounding to bf16 took up to 2.3e-4 of a full-sized
random body's; causal attention or a lost end-of-text token took over 0.1 of some text's on small
ones (`docs/golden-vectors.md`)."""

_SHOWN = 40


class GoldenError(TeacherError):
    """A golden file that cannot be used, or a teacher that does not give its vectors: one line."""


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden file that was read. `vectors` [n, width] need not be of unit length."""

    path: Path
    teacher: str
    max_tokens: int | None
    texts: tuple[GoldenText, ...]
    vectors: FloatArray
    notes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a teacher came: `cosines` [n] with the references, `tokens` [n] as it saw them."""

    golden: Golden
    cosines: NDArray[np.float64]
    tokens: IntArray

    @property
    def worst(self) -> list[int]:
        """Rows of the golden file, the lowest cosine first, and before it what is no number."""
        known = np.nan_to_num(self.cosines, nan=-np.inf)
        rows: list[int] = np.argsort(known, kind="stable").tolist()
        return rows

    @property
    def failure(self) -> str | None:
        """What is wrong, in words; None where every cosine is at least `MIN_COSINE`."""
        # Not `<`: a cosine that is not a number fails too.
        failed = np.flatnonzero(~(self.cosines >= MIN_COSINE))
        if not len(failed):
            return None
        row = self.worst[0]
        prompted = sum(bool(self.golden.texts[i].prompt) for i in failed)
        return (
            f"teacher {self.golden.teacher!r} does not give the vectors of {self.golden.path}: "
            f"{len(failed)} of {len(self.cosines)} cosines are under {MIN_COSINE} ({prompted} of "
            f"them behind a prompt); the lowest is {self.cosines[row]:.6f}, of text {row} "
            f"{shown(self.golden.texts[row])}, {self.tokens[row]} tokens"
        )


def shown(text: GoldenText) -> str:
    """The beginning of a text on one line, quoted, with `…` where it goes on."""
    start = text.text[:_SHOWN] + ("…" if len(text.text) > _SHOWN else "")
    return json.dumps(start, ensure_ascii=not start.isprintable())


def write_texts(path: Path) -> None:
    """Write the 64 texts as JSON lines, for a script that adds the vectors.

    Raises:
        GoldenError: the file exists.
    """
    _refuse_existing(path)
    commit_bytes(path, to_lines(golden_texts()).encode())


def write_golden(path: Path, teacher: Teacher, *, base: Path = Path(), device: str) -> None:
    """Take this teacher's vectors of the 64 texts, as loaded here, for the reference.

    The teacher is probed first: what fails that would hold every later one to a fault.

    Raises:
        GoldenError: the file exists.
        TeacherError: the teacher cannot be found or loaded, or fails the probe.
    """
    _refuse_existing(path)
    folder, revision = loading.locate(teacher, base)
    fingerprint = models.fingerprint(folder, loading.inspect_files(teacher, folder))
    encoder = loading.load_encoder(teacher, folder, device=device, token_budget=None)
    probe(encoder, teacher)
    texts = golden_texts()
    vectors = _encode(encoder, texts).vectors
    block = loading.block_of(teacher, encoder, offset=0, revision=revision, fingerprint=fingerprint)
    names = ("encoder", "repository", "revision", "fingerprint", "pooling", "dtype", "licence")
    notes = {name: str(block.to_json()[name]) for name in names}
    packages = ("torch", "transformers", "tokenizers")
    notes["versions"] = ", ".join(f"{name} {version(name)}" for name in packages)
    _commit(path, Golden(path, teacher.name, teacher.max_tokens, texts, vectors, notes))


def check_golden(path: Path, teacher: Teacher, *, base: Path = Path(), device: str) -> Agreement:
    """Load a teacher and hold it against a golden file of its own.

    Raises:
        GoldenError: the file cannot be read, or is of another teacher, width or longest input.
        TeacherError: the teacher cannot be found or loaded.
    """
    (golden,) = read_goldens([path], [teacher])
    folder, _ = loading.locate(teacher, base)
    encoder = loading.load_encoder(teacher, folder, device=device, token_budget=None)
    return compare(encoder, teacher, golden)


def read_goldens(paths: Sequence[Path], teachers: Sequence[Teacher]) -> list[Golden]:
    """Read golden files and find the teacher of each among `teachers`. No weights are needed.

    Raises:
        GoldenError: a file cannot be read, or is of another teacher, width or longest input.
    """
    rows = {teacher.name: teacher for teacher in teachers}
    goldens = [_read(path) for path in paths]
    for golden in goldens:
        if golden.teacher not in rows:
            raise GoldenError(
                f"{golden.path} holds the vectors of teacher {golden.teacher!r}, not of "
                f"{' or '.join(map(repr, rows))}"
            )
        teacher = rows[golden.teacher]
        if golden.max_tokens != teacher.max_tokens:
            raise GoldenError(
                f"{golden.path} was taken at max_tokens {golden.max_tokens}, teacher "
                f"{teacher.name!r} has {teacher.max_tokens}: texts are cut elsewhere; take the "
                "vectors again"
            )
        if teacher.width is not None:
            _check_width(golden, teacher.width)
    return goldens


def hold(encoder: Encoder, teacher: Teacher, goldens: Sequence[Golden]) -> None:
    """Stop a build whose teacher is not what its golden files say; those of others are passed over.

    Raises:
        GoldenError: naming the teacher, how many texts fail, and the worst with its cosine.
    """
    for golden in goldens:
        if golden.teacher != teacher.name:
            continue
        failure = compare(encoder, teacher, golden).failure
        if failure:
            raise GoldenError(f"{failure}; no shard was written")


def compare(encoder: Encoder, teacher: Teacher, golden: Golden) -> Agreement:
    """The cosines between what a loaded teacher gives and a golden file of its own.

    Raises:
        GoldenError: the widths differ.
    """
    _check_width(golden, encoder.width)
    encoded = _encode(encoder, golden.texts)
    found, expected = encoded.vectors.astype(np.float64), golden.vectors.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = (found * expected).sum(1) / lengths
    return Agreement(golden, cosines, encoded.tokens)


def _encode(encoder: Encoder, texts: Sequence[GoldenText]) -> Encoded:
    prepared = encoder.prepare([text.text for text in texts], [text.prompt for text in texts])
    return encoder.encode(prepared, lambda _texts_done: None)


def _check_width(golden: Golden, width: int) -> None:
    if golden.vectors.shape[1] != width:
        raise GoldenError(
            f"{golden.path} holds vectors {golden.vectors.shape[1]} wide, teacher "
            f"{golden.teacher!r} gives {width}"
        )


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise GoldenError(f"{path} exists; a reference is taken once: remove it, or name another")


def _commit(path: Path, golden: Golden) -> None:
    from safetensors.numpy import save

    metadata = {
        **golden.notes,
        "teacher": golden.teacher,
        "max_tokens": json.dumps(golden.max_tokens),
        "texts": to_lines(golden.texts),
    }
    commit_bytes(path, save({"vectors": golden.vectors}, metadata))


def _read(path: Path) -> Golden:
    vectors, notes = _contents(path)
    missing = [name for name in ("texts", "teacher", "max_tokens") if name not in notes]
    if missing:
        raise GoldenError(f"{path}: its metadata has no {missing[0]!r}: not a golden file")
    try:
        texts = from_lines(notes.pop("texts"))
    except ValueError as error:
        raise GoldenError(f"{path}: among its texts, {error}") from None
    limit = notes.pop("max_tokens")
    if limit != "null" and not limit.isdecimal():
        raise GoldenError(f"{path}: max_tokens is {limit!r}; expected a number, or null for none")
    if len(texts) != len(vectors) or not texts:
        raise GoldenError(f"{path} has {len(texts)} texts and {len(vectors)} vectors")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise GoldenError(f"{path}: vector {bad[0]} is no reference, its length is {norms[bad[0]]}")
    max_tokens = None if limit == "null" else int(limit)
    return Golden(path, notes.pop("teacher"), max_tokens, texts, vectors, notes)


def _contents(path: Path) -> tuple[FloatArray, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise GoldenError(f"there is no golden file {path}; see docs/golden-vectors.md")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in found.items()}
            vectors = kinds.get("vectors")
            if len(kinds) != 1 or vectors is None or vectors[0] != "F32" or len(vectors[1]) != 2:
                raise GoldenError(
                    f"{path}: expected one tensor, `vectors` in F32 [texts, width], found {kinds}"
                )
            return file.get_tensor("vectors"), metadata
    except (SafetensorError, OSError) as error:
        raise GoldenError(f"{path} is not a whole safetensors file: {error}") from error
