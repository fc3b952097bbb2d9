"""One shard from texts to committed rows, the task of every engine; and the loop over many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_cache.encoders.protocol import Encoded, Encoder
from teacher_cache.format import Plan, ShardFormat
from teacher_cache.plan import read_texts
from teacher_cache.teachers import Teacher
from teacher_cache.writer import Texts, committed, write_shard


@dataclass(frozen=True, slots=True)
class Prepared:
    """A shard's texts, and what each teacher made of them before its device is needed."""

    index: int
    texts: Texts
    inputs: Sequence[Any]


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What is needed to encode any shard of a cache: its plan and its loaded teachers."""

    cache: Path
    plan: Plan
    identity: str
    teachers: Sequence[Teacher]
    encoders: Sequence[Encoder]
    shard_format: ShardFormat

    def prepare(self, index: int) -> Prepared | None:
        """Read and tokenise a shard's texts; None where another builder committed it meanwhile."""
        if committed(self.cache, index) is not None:
            return None
        texts = read_texts(self.cache, self.plan, index)
        inputs = [
            encoder.prepare(texts.texts, [teacher.prompt_for(s) for s in texts.sources])
            for encoder, teacher in zip(self.encoders, self.teachers, strict=True)
        ]
        return Prepared(index, texts, inputs)

    def encode(self, shard: Prepared, advance: Callable[[int], None]) -> list[Encoded]:
        """Every teacher's vectors; `advance` is told of texts as they are encoded."""
        pairs = zip(self.encoders, shard.inputs, strict=True)
        return [encoder.encode(inputs, advance) for encoder, inputs in pairs]

    def commit(self, shard: Prepared, vectors: Sequence[Encoded]) -> None:
        """Write the shard and its record.

        Raises:
            CacheError: a vector is missing, not finite or zero.
        """
        names = [teacher.name for teacher in self.teachers]
        blocks = list(zip(names, vectors, strict=True))
        write_shard(
            self.cache,
            shard.index,
            identity=self.identity,
            texts=shard.texts,
            blocks=blocks,
            shard_format=self.shard_format,
        )


def encode_shards(job: ShardJob, indices: Sequence[int], advance: Callable[[int], None]) -> None:
    """Encode and commit shards one after the other.

    While the device encodes one shard, a thread tokenises the next and another writes the one
    before: three shards are in memory, never more.
    """
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        prepared = [ahead.submit(job.prepare, index) for index in indices[:1]]
        written: list[Future[None]] = []
        for position, index in enumerate(indices):
            shard = prepared.pop().result()
            prepared = [ahead.submit(job.prepare, i) for i in indices[position + 1 : position + 2]]
            if shard is None:
                advance(job.plan.shards[index].rows * len(job.teachers))
                continue
            vectors = job.encode(shard, advance)
            for earlier in written:
                earlier.result()
            written = [behind.submit(job.commit, shard, vectors)]
        for last in written:
            last.result()
