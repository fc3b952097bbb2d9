"""Which texts a cache will hold, in which order: written once, before any teacher runs.

The plan is what makes a build resumable without reading the corpus again, what ranks divide, and
what a damaged shard is rebuilt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
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
from teacher_cache.writer import Texts, write_plan_file, write_record


def make_plan(
    cache: Path, corpus: Corpus, *, rows_per_shard: int, on_text: Callable[[int], None]
) -> Plan:
    """Read the corpus once and commit its texts, shard by shard, held-out texts last.

    Memory holds one shard and the held-out texts. A crash leaves no plan: planning starts again.

    Raises:
        CacheError: the corpus has no text, or none is left to train on.
    """
    shards: list[FileRecord] = []
    held_out: list[Text] = []
    waiting: list[Text] = []
    everything = xxhash.xxh3_128()

    def commit() -> None:
        texts = _columns(waiting)
        everything.update(b"".join(texts.ids))
        shards.append(write_plan_file(cache, len(shards), texts))
        waiting.clear()

    def ordered() -> Iterator[Text]:
        for text in corpus:
            on_text(1)
            if text.held_out:
                held_out.append(text)
            else:
                yield text
        yield from held_out

    for text in ordered():
        waiting.append(text)
        if len(waiting) == rows_per_shard:
            commit()
    if waiting:
        commit()
    rows = sum(shard.rows for shard in shards)
    if rows == len(held_out):
        found = "no text at all" if rows == 0 else f"{rows} texts, all of them held out"
        raise CacheError(f"the corpus gives {found}: expected texts to train on; see [corpus]")
    plan = Plan(
        format_version=FORMAT_VERSION,
        rows=rows,
        held_out_rows=len(held_out),
        rows_per_shard=rows_per_shard,
        ids_digest=everything.hexdigest(),
        corpus=corpus_facts(corpus),
        counts=corpus.counts.as_dict(),
        shards=tuple(shards),
    )
    write_record(cache / PLAN_FILE, plan)
    return plan


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
    path = plan_path(cache, index)
    expected = plan.shards[index]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CacheError(f"{path} is missing: the plan of {cache} lists it") from None
    found = xxhash.xxh3_128_hexdigest(data)
    if found != expected.checksum:
        raise CacheError(f"{path} has checksum {found} but the plan says {expected.checksum}")
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    return Texts(*(table.column(name).to_pylist() for name in ("id", "text", "source")))


def _columns(texts: list[Text]) -> Texts:
    return Texts(
        [text.id for text in texts], [text.text for text in texts], [text.source for text in texts]
    )
