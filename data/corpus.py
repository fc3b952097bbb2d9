"""The corpus: an ordered stream of distinct texts, mixed from several sources.

A corpus is a pure function of its files and its `CorpusSpec`: every pass gives the same texts in
the same order. Memory is one row per source and the ids seen so far: `IdSet` says how much.
"""

from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.files import CorpusError
from data.sources import BadRow, Group, SourceSpec, open_source

__all__ = [
    "Corpus",
    "CorpusCounts",
    "CorpusError",
    "CorpusSpec",
    "IdSet",
    "SourceCounts",
    "SourceSpec",
    "Text",
    "is_held_out",
    "text_id",
]


@dataclass(frozen=True, slots=True)
class Text:
    """One text of the corpus: its `text_id`, and the name of the source it came from."""

    id: bytes
    text: str
    source: str
    held_out: bool


class CorpusSpec(BaseModel):
    """What a corpus is made of. Two equal specs over the same files give the same corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[SourceSpec, ...] = Field(
        min_length=1, description="Where the texts come from; the names must differ."
    )
    texts: int | None = Field(
        None,
        gt=0,
        description="Stop after so many distinct texts, held-out ones included; without it, when "
        "every source has run out.",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Fraction of the rows whose texts are kept out of training for evaluation. "
        "The texts of one row are held out together, and stay so when the fraction grows.",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What to do with a row that is empty, no text, broken JSON or invalid UTF-8: "
        "stop there, or count it and go on. Damaged files always stop.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Chooses which rows are held out.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names must differ, found twice: {', '.join(twice)}")
        return self


@dataclass(slots=True)
class SourceCounts:
    """What has become of one source: `read` and `skipped` count rows, the others texts."""

    read: int = 0
    skipped: int = 0
    kept: int = 0
    duplicates: int = 0
    held_out: int = 0


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """What has become of every source, by name, up to the text given last."""

    sources: dict[str, SourceCounts] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Texts given so far."""
        return sum(counts.kept for counts in self.sources.values())

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts by source and then by name, for JSON."""
        return {name: asdict(counts) for name, counts in self.sources.items()}


def text_id(text: str) -> bytes:
    """Return the id of a text: the 16-byte big-endian XXH3-128 digest of its UTF-8 form.

    Raises `CorpusError` if the text has lone surrogates, which UTF-8 cannot hold.
    """
    try:
        return xxhash.xxh3_128_digest(text.encode())
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"expected a text that UTF-8 can hold, found a lone U+{ord(text[error.start]):04X} at "
            f"character {error.start + 1}; mend where the text was made"
        ) from None


def is_held_out(first_id: bytes, fraction: float, seed: int) -> bool:
    """Decide whether a group is held out by the id of its first text, and by nothing else."""
    return xxhash.xxh3_64_intdigest(first_id, seed) < fraction * 2**64


class Corpus:
    """The texts of a `CorpusSpec`, in order; every iteration is a new pass over the sources.

    `base` is the folder that relative paths start from. `counts` belongs to the pass that began
    last and grows with it. Raises `CorpusError`: on construction where files are missing, during
    a pass where their content is at fault or a source holds no text.
    """

    def __init__(self, spec: CorpusSpec, base: Path = Path()) -> None:
        self.spec = spec
        self.counts = CorpusCounts()
        self._passes = [open_source(source, base) for source in spec.sources]

    def __iter__(self) -> Iterator[Text]:
        spec = self.spec
        streams = [
            _Stream(source, start(), spec.bad_rows)
            for source, start in zip(spec.sources, self._passes, strict=True)
        ]
        self.counts = CorpusCounts({stream.name: stream.counts for stream in streams})
        seen = IdSet()
        kept = 0
        for stream, group in _mixed(streams):
            counts = stream.counts
            ids = [text_id(text) for text in group]
            held_out = is_held_out(ids[0], spec.held_out, spec.seed)
            for id_, text in zip(ids, group, strict=True):
                if not seen.add(id_):
                    counts.duplicates += 1
                    continue
                counts.kept += 1
                counts.held_out += held_out
                yield Text(id_, text, stream.name, held_out)
                kept += 1
                if kept == spec.texts:
                    return


class IdSet:
    """The ids seen so far, kept as their first 64 bits in one flat table.

    Two different texts are taken for one with a chance of 2e-6 in a corpus of 8 million, and of
    3e-4 in one of 100 million. The tables take 134 MB and 1.1 GB, and 2.6 times that for the
    moment in which they grow; a Python set takes 650 MB and about 9 GB.
    """

    # Open addressing with linear probing. A key starts at the slot that its leading bits name,
    # so sorted keys lie in the order of their slots, and a larger table is filled in one go. A
    # free slot holds 0.

    def __init__(self) -> None:
        self._count = 0
        self._resize(12)

    def __len__(self) -> int:
        return self._count

    def add(self, id_: bytes) -> bool:
        """Add an id; False if it was there already."""
        if not self._put(int.from_bytes(id_[:8], "big") or 1):
            return False
        self._count += 1
        if 4 * self._count > 3 * len(self._slots):
            self._grow()
        return True

    def _resize(self, bits: int) -> None:
        self._slots = array("Q", (0,)) * (1 << bits)
        self._shift = 64 - bits

    def _put(self, key: int) -> bool:
        slots = self._slots
        slot = key >> self._shift
        while found := slots[slot]:
            if found == key:
                return False
            slot = (slot + 1) % len(slots)
        slots[slot] = key
        return True

    def _grow(self) -> None:
        import numpy as np

        keys = np.frombuffer(self._slots, np.uint64)
        keys = keys[keys != 0]
        keys.sort()
        self._resize(65 - self._shift)
        # Each key goes to its own slot or, where that is taken, behind the key before it.
        order = np.arange(len(keys))
        slots = (keys >> self._shift).astype(np.int64)
        slots -= order
        np.maximum.accumulate(slots, out=slots)
        slots += order
        fitting = int(np.searchsorted(slots, len(self._slots)))
        np.frombuffer(self._slots, np.uint64)[slots[:fitting]] = keys[:fitting]
        for key in keys[fitting:].tolist():
            self._put(key)


class _Stream:
    """One source during a pass: draws its groups and counts what becomes of them."""

    def __init__(
        self,
        source: SourceSpec,
        groups: Iterator[Group | BadRow],
        bad_rows: Literal["refuse", "skip"],
    ) -> None:
        self.name = source.name
        self.weight = source.weight
        self.counts = SourceCounts()
        self._groups = groups
        self._bad_rows = bad_rows

    def draw(self) -> Group | None:
        """Return the next group, None at the end; counts only the rows it passes over."""
        for group in self._groups:
            if not isinstance(group, BadRow):
                return group
            if self._bad_rows == "refuse":
                raise CorpusError(
                    f'{group.problem}; mend the row, or pass such rows over with bad_rows = "skip"'
                )
            self.counts.read += 1
            self.counts.skipped += 1
        if self.counts.read == self.counts.skipped:
            raise CorpusError(
                f"source {self.name!r}: expected rows with texts, found {self.counts.read} rows, "
                "none of them good; check its path and fields"
            )
        return None


def _mixed(streams: list[_Stream]) -> Iterator[tuple[_Stream, Group]]:
    """Take each group from the source that is furthest behind its share of the texts kept."""
    # Every source is read once before any text is given: one that cannot be read shows at once,
    # not hours later.
    first = {stream.name: stream.draw() for stream in streams}
    live = list(streams)
    while live:
        # The shares are those among the sources that still have texts.
        weights = sum(stream.weight for stream in live)
        texts = sum(stream.counts.kept for stream in live) + 1
        behind = [stream.weight * texts - stream.counts.kept * weights for stream in live]
        stream = live[behind.index(max(behind))]
        group = first.pop(stream.name, None) or stream.draw()
        if group is None:
            live.remove(stream)
        else:
            stream.counts.read += 1
            yield stream, group
