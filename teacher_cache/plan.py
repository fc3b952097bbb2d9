"""Which texts a cache will hold, in which order: written once, before any teacher runs.

The plan is what makes a build resumable without reading the corpus again, what ranks divide, and
what a damaged shard is rebuilt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from data.corpus import Corpus, Text
from teacher_cache.format import (
    FORMAT_VERSION,
    PLAN_FILE,
    CacheError,
    FileRecord,
    Plan,
    plan_path,
    read_json,
)
from teacher_cache.plan_progress import (
    Progress,
    clear_progress,
    keep_held_out,
    kept_held_out,
    read_committed,
    read_progress,
    save_progress,
)
from teacher_cache.writer import Texts, plan_shard, write_first

SAVE_EVERY = 8
"""Shards from one saved state to the next: what a crash can cost, 65,536 texts, is seconds."""


def make_plan(
    cache: Path,
    corpus: Corpus,
    *,
    rows_per_shard: int,
    on_text: Callable[[int], None],
    save_every: int = SAVE_EVERY,
) -> Plan:
    """Read the corpus once and commit its texts, shard by shard, held-out texts last.

    How far it came is saved after every `save_every` shards: after a crash the next call goes on
    from there, tells `on_text` at once how many texts there are already, and makes the same files.
    Memory holds one shard, the texts held out since the last save, and what the corpus keeps.

    Raises:
        CacheError: the corpus has no text, or none is left to train on; or a plan of another
            corpus was begun there.
        CorpusError: the corpus cannot be read, or its files have changed since planning began.
    """
    planner = _Planner(cache, corpus, rows_per_shard)
    try:
        if done := planner.resume():
            on_text(done)
        for text in planner.texts:
            on_text(1)
            planner.take(text)
            if not planner.waiting and len(planner.shards) >= planner.saved + save_every:
                planner.save()
        plan = planner.finish()
    except CacheError:
        # Another planner may have finished the same plan and cleared what both had saved.
        finished = read_plan(cache)
        if finished is None or finished.corpus != corpus_facts(corpus):
            raise
        plan = finished
    else:
        if not write_first(cache / PLAN_FILE, plan):
            plan = read_plan(cache) or plan
    clear_progress(cache)
    return plan


class _Planner:
    """A plan in the making. Saved states are those in which no text waits for its shard."""

    def __init__(self, cache: Path, corpus: Corpus, rows_per_shard: int) -> None:
        self.cache = cache
        self.corpus = corpus
        self.rows_per_shard = rows_per_shard
        self.shards: list[FileRecord] = []
        self.waiting: list[Text] = []
        self.saved = 0
        self._ids = xxhash.xxh3_128()
        # Held-out texts: in files by the number of shards at the time, and those since the last.
        self._kept: dict[str, FileRecord] = {}
        self._held_out: list[Text] = []

    def resume(self) -> int:
        """Start the pass over the corpus, where another planner left off; how far that came."""
        facts = corpus_facts(self.corpus)
        progress = read_progress(self.cache, facts, self.rows_per_shard)
        if progress is None:
            self.texts = self.corpus.start()
            return 0
        self.shards = list(progress.shards)
        self.saved = len(self.shards)
        self._kept = dict(progress.held_out)
        self.texts = self.corpus.start(dict(progress.state), self._planned())
        return progress.rows

    def take(self, text: Text) -> None:
        if text.held_out:
            self._held_out.append(text)
        else:
            self._append(text)

    def save(self) -> None:
        if self._is_planned():
            raise _overtaken(self.cache)
        if self._held_out:
            texts = _columns(self._held_out)
            kept = keep_held_out(self.cache, len(self.shards), texts)
            self._kept[str(len(self.shards))] = kept
            self._held_out.clear()
        progress = Progress(
            format_version=FORMAT_VERSION,
            corpus=corpus_facts(self.corpus),
            rows_per_shard=self.rows_per_shard,
            shards=tuple(self.shards),
            held_out=self._kept,
            state=self.texts.state(),
        )
        save_progress(self.cache, progress)
        self.saved = len(self.shards)

    def finish(self) -> Plan:
        """Commit what is left, the held-out texts behind all others."""
        held_out = 0
        for text in self._all_held_out():
            self._append(text)
            held_out += 1
        if self.waiting:
            self._commit()
        rows = sum(shard.rows for shard in self.shards)
        if rows == held_out:
            found = "no text at all" if rows == 0 else f"{rows} texts, all of them held out"
            raise CacheError(f"the corpus gives {found}: expected texts to train on; see [corpus]")
        return Plan(
            format_version=FORMAT_VERSION,
            rows=rows,
            held_out_rows=held_out,
            rows_per_shard=self.rows_per_shard,
            ids_digest=self._ids.hexdigest(),
            corpus=corpus_facts(self.corpus),
            counts=self.corpus.counts.as_dict(),
            shards=tuple(self.shards),
        )

    def _append(self, text: Text) -> None:
        self.waiting.append(text)
        if len(self.waiting) == self.rows_per_shard:
            self._commit()

    def _commit(self) -> None:
        texts = _columns(self.waiting)
        self._ids.update(b"".join(texts.ids))
        record = plan_shard(self.cache, len(self.shards), texts, self._is_planned)
        if record is None:
            raise _overtaken(self.cache)
        self.shards.append(record)
        self.waiting.clear()

    def _is_planned(self) -> bool:
        return (self.cache / PLAN_FILE).exists()

    def _planned(self) -> Iterator[tuple[bytes, str]]:
        """What the pass has given so far, from the committed files."""
        for index, record in enumerate(self.shards):
            owner = f"the unfinished plan of {self.cache}"
            texts = read_committed(plan_path(self.cache, index), record, owner)
            self._ids.update(b"".join(texts.ids))
            yield from zip(texts.ids, texts.texts, strict=True)
        for texts in kept_held_out(self.cache, self._kept):
            yield from zip(texts.ids, texts.texts, strict=True)

    def _all_held_out(self) -> Iterator[Text]:
        for texts in kept_held_out(self.cache, self._kept):
            for row in zip(texts.ids, texts.texts, texts.sources, strict=True):
                yield Text(*row, held_out=True)
        yield from self._held_out


def _overtaken(cache: Path) -> CacheError:
    """A finished plan never changes, whatever the corpus has become since."""
    return CacheError(f"{cache} was planned by another process meanwhile")


def corpus_facts(corpus: Corpus) -> dict[str, Any]:
    """The corpus as its recipe specifies it: plain data that a resumed build must equal."""
    return corpus.spec.model_dump(mode="json", exclude_defaults=True)


def read_plan(cache: Path) -> Plan | None:
    """The committed plan of a cache, None where planning never finished."""
    path = cache / PLAN_FILE
    if not path.exists():
        return None
    return Plan.from_json(read_json(path), str(path))


def read_texts(cache: Path, plan: Plan, index: int) -> Texts:
    """The planned texts of one shard, checked against the plan's record.

    Raises:
        CacheError: the file is missing or is not what was committed.
    """
    return read_committed(plan_path(cache, index), plan.shards[index], f"the plan of {cache}")


def _columns(texts: list[Text]) -> Texts:
    return Texts(
        [text.id for text in texts], [text.text for text in texts], [text.source for text in texts]
    )
