"""The corpus: an ordered stream of distinct texts, mixed from several sources.

A corpus is a pure function of its files and its `CorpusSpec`: every pass gives the same texts in
the same order. Memory is one row per source and what `Seen` keeps of the texts so far.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import xxhash
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.augment import cut, is_chosen, shuffled
from data.duplicates import IdSet, Seen
from data.files import CorpusError
from data.mix import CorpusCounts, SourceCounts, State, Stream, mixed
from data.sources import Group, SourceSpec, open_source

__all__ = [
    "Corpus",
    "CorpusCounts",
    "CorpusError",
    "CorpusPass",
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
        min_length=1, description="where the texts come from; the names must differ"
    )
    texts: int | None = Field(
        None,
        gt=0,
        description="stop after so many distinct texts, held-out ones included; without it, when "
        "every source has run out",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="fraction of the rows whose texts are kept out of training for evaluation. "
        "The texts of one row are held out together, and stay so when the fraction grows",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what to do with a row that is empty, no text, broken JSON or invalid UTF-8: "
        "stop there, or count it and go on. Damaged files always stop",
    )
    near_duplicates: Literal["drop", "keep"] = Field(
        "keep",
        description="what to do with a text that differs from one before it in nothing but case, "
        "punctuation, white space and compatibility forms of characters",
    )
    shuffle_words: float = Field(
        0.0, ge=0, le=1, description="fraction of the texts whose words are put in random order"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="chooses which rows are held out, which texts are cut, where, and shuffled",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names must differ, found twice: {', '.join(twice)}")
        return self


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
        self._sources = [open_source(source, base) for source in spec.sources]

    def __iter__(self) -> "CorpusPass":
        return self.start()

    def start(
        self, state: State | None = None, seen: Iterable[tuple[bytes, str]] = ()
    ) -> "CorpusPass":
        """Begin a pass, or go on behind the text after which another one gave its `state`.

        `seen` are then the texts given up to there, with their ids, in any order. What follows is
        what would have followed, counts included. Nothing that was read is read again, except that
        a file is passed over up to the row where reading stopped.
        """
        streams = [
            Stream(
                source, start, self.spec.bad_rows, state["sources"][source.name] if state else None
            )
            for source, start in zip(self.spec.sources, self._sources, strict=True)
        ]
        self.counts = CorpusCounts({stream.name: stream.counts for stream in streams})
        return CorpusPass(self.spec, streams, state["group"] if state else None, seen)


class CorpusPass(Iterator[Text]):
    """One pass over a corpus; see `Corpus.start`."""

    def __init__(
        self,
        spec: CorpusSpec,
        streams: list[Stream],
        group: State | None,
        seen: Iterable[tuple[bytes, str]],
    ) -> None:
        self._spec = spec
        self._streams = streams
        self._kept = sum(stream.counts.kept for stream in streams)
        self._seen = Seen(near=spec.near_duplicates == "drop")
        for id_, text in seen:
            self._seen.add(id_, text)
        # The group at hand: whose it is, whether it is held out, and what of it is still to come.
        self._stream = streams[group["source"]] if group else streams[0]
        self._held_out: bool = group["held_out"] if group else False
        self._rest: deque[str] = deque(group["rest"] if group else ())
        self._texts = self._given()

    def __next__(self) -> Text:
        return next(self._texts)

    def state(self) -> State:
        """Where the pass stands, behind the text given last: plain JSON data for `start`."""
        return {
            "sources": {stream.name: stream.state() for stream in self._streams},
            "group": {
                "source": self._streams.index(self._stream),
                "held_out": self._held_out,
                "rest": list(self._rest),
            },
        }

    def _given(self) -> Iterator[Text]:
        yield from self._of_group()
        if self._is_full():
            return
        for stream, group in mixed(self._streams):
            self._take(stream, group)
            yield from self._of_group()
            if self._is_full():
                return

    def _is_full(self) -> bool:
        return self._spec.texts is not None and self._kept >= self._spec.texts

    def _take(self, stream: Stream, group: Group) -> None:
        """Make a group the one at hand, its documents cut."""
        spec, source = self._spec, stream.source
        ids = [text_id(text) for text in group]
        self._stream = stream
        self._held_out = is_held_out(ids[0], spec.held_out, spec.seed)
        for id_, text in zip(ids, group, strict=True):
            pieces = [text]
            if is_chosen("cut", id_, source.cut, spec.seed):
                pieces = cut(text, id_, source.sentences, spec.seed)
                stream.counts.cut += len(pieces) > 1
            self._rest.extend(pieces)

    def _of_group(self) -> Iterator[Text]:
        spec, counts = self._spec, self._stream.counts
        while self._rest and not self._is_full():
            text = self._rest.popleft()
            id_ = text_id(text)
            is_shuffled = is_chosen("shuffle", id_, spec.shuffle_words, spec.seed)
            if is_shuffled:
                text = shuffled(text, id_, spec.seed)
                id_ = text_id(text)
            match self._seen.add(id_, text):
                case "duplicate":
                    counts.duplicates += 1
                case "near duplicate":
                    counts.near_duplicates += 1
                case "new":
                    counts.kept += 1
                    counts.shuffled += is_shuffled
                    counts.held_out += self._held_out
                    self._kept += 1
                    yield Text(id_, text, self._stream.name, self._held_out)
