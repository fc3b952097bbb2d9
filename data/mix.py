"""Several sources as one stream of groups, each at its share, and what has become of each."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from data.files import CorpusError
from data.sources import BadRow, Group, Position, Rows, SourceSpec

State: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class SourceCounts:
    """What has become of one source: `read` and `skipped` count rows, the others texts.

    `cut` texts were replaced by pieces, which are counted like texts of their own from there on.
    `shuffled` and `held_out` ones are among the `kept`.
    """

    read: int = 0
    skipped: int = 0
    cut: int = 0
    kept: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    shuffled: int = 0
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


class Stream:
    """One source during a pass: draws its groups and counts what becomes of them.

    With the `state` of another stream over the same source it goes on where that one stood.
    """

    def __init__(
        self,
        source: SourceSpec,
        start: Callable[[Position | None], Rows],
        bad_rows: Literal["refuse", "skip"],
        state: State | None = None,
    ) -> None:
        self.source = source
        self.name = source.name
        self.weight = source.weight
        self.counts = SourceCounts(**state["counts"]) if state else SourceCounts()
        self.ended: bool = state["ended"] if state else False
        self._begun: bool = state["begun"] if state else False
        # Drawn already, but not due yet.
        self._waiting: Group | None = state["waiting"] if state else None
        self._rows = start(state["position"] if state else None)
        self._bad_rows = bad_rows

    def begin(self) -> None:
        """Read up to the first group; nothing happens where that was done."""
        if not self._begun:
            # What pairs are made of is read at once: of their bad rows nothing comes by later.
            passed_over: int = getattr(self._rows, "passed_over", 0)
            self.counts.read += passed_over
            self.counts.skipped += passed_over
            self._waiting = self._draw()
            self._begun = True

    def draw(self) -> Group | None:
        """Return the next group, None at the end."""
        self.begin()
        group, self._waiting = self._waiting, None
        if group is None and not self.ended:
            group = self._draw()
        self.counts.read += group is not None
        return group

    def state(self) -> State:
        """Where the stream stands, as plain JSON data."""
        return {
            "counts": asdict(self.counts),
            "ended": self.ended,
            "begun": self._begun,
            "waiting": self._waiting,
            "position": self._rows.position(),
        }

    def _draw(self) -> Group | None:
        for group in self._rows:
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
        self.ended = True
        return None


def mixed(streams: list[Stream]) -> Iterator[tuple[Stream, Group]]:
    """Take each group from the source that is furthest behind its share of the texts kept."""
    # Every source is read once before any text is given: one that cannot be read shows at once,
    # not hours later.
    for stream in streams:
        stream.begin()
    live = [stream for stream in streams if not stream.ended]
    while live:
        # The shares are those among the sources that still have texts.
        weights = sum(stream.weight for stream in live)
        texts = sum(stream.counts.kept for stream in live) + 1
        behind = [stream.weight * texts - stream.counts.kept * weights for stream in live]
        stream = live[behind.index(max(behind))]
        group = stream.draw()
        if group is None:
            live.remove(stream)
        else:
            yield stream, group
