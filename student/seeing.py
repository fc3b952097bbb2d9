"""What a stage that reads images is given: pairs, the image side to begin with, caption states.

The target of an image is what the frozen text side makes of its caption. The text side's pooled
states may have been computed once, in a cache over the captions: the student of the stage before,
exported with `--head pooled`, is a teacher like any other, and `build --keep-pooled` keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from data.pairs import Pairs
from student.batches import Rows, Samples, Target
from student.inputs import PooledBatch, StudentBatch
from student.jasper import load_image_side
from student.model import Student
from student.pooled import prompts_of
from student.spec import FreshVision, StudentError, StudentSpec, VisionSpec
from student.vision import Vision, fresh_vision
from teacher_cache.models import body_fingerprint
from teacher_cache.reader import CacheReader

BROKEN_FILE = "broken-images.jsonl"
"""In a stage's folder: the images that were passed over, and why."""

ROWS_PER_WINDOW = 1024
"""Pairs that stand for a shard where a stage orders its rows by windows of shards."""


@dataclass(frozen=True, slots=True)
class Seeing:
    """Pairs, the folder of the vision model to begin with (None for a fresh one), and a cache over
    the captions if there is one."""

    pairs: Pairs
    vision: Path | None
    captions: CacheReader | None = None


def image_side(seeing: Seeing, hidden: int, spec: VisionSpec, seed: int) -> Vision:
    """The image side that a stage begins with.

    Raises:
        StudentError: the folder of the vision model cannot be used.
    """
    if seeing.vision is not None:
        return load_image_side(seeing.vision, hidden, spec)
    return fresh_vision(spec.fresh or FreshVision(), hidden, spec, seed)


class CaptionStates:
    """The pooled states of captions, from a cache that the student's own text side made.

    `text` is the folder of the text side that the stage starts from.

    Raises:
        StudentError: the cache keeps no states, or those of another student.
    """

    def __init__(self, reader: CacheReader, text: Path, spec: StudentSpec) -> None:
        kept = reader.manifest.pooled
        made = (
            "make it with: jasper-student export RUN OUT --head pooled, then jasper-cache build "
            "--keep-pooled over the captions"
        )
        if kept is None:
            raise StudentError(f"{reader.path} keeps no pooled states of captions; {made}")
        (block,) = (block for block in reader.manifest.blocks if block.teacher == kept.teacher)
        if body_fingerprint(text) != kept.body:
            raise StudentError(
                f"{reader.path} is of another student: the text side of {kept.teacher} is not the "
                f"one in {text}; {made}"
            )
        limit, prompts = block.max_tokens, prompts_of(block)
        if prompts != {spec.prompt} or limit != spec.max_tokens:
            raise StudentError(
                f"{reader.path} has captions of at most {limit} tokens behind "
                f"{', '.join(map(repr, sorted(prompts)))}; the student reads {spec.max_tokens} "
                f"behind {spec.prompt!r}"
            )
        self.reader = reader
        shards = range(len(reader.manifest.shards))
        ids = [np.frombuffer(reader.shard_ids(number), ">u8").reshape(-1, 2) for number in shards]
        whole = np.concatenate(ids)
        self._order = np.lexsort((whole[:, 1], whole[:, 0]))
        self._ids = whole[self._order]
        self._first = self._ids[:, 0].astype(np.uint64)

    def states(self, captions: Sequence[str]) -> NDArray[np.float16]:
        """The states [n, H] of captions.

        Raises:
            StudentError: the cache lacks one.
        """
        return self.reader.pooled([self._row(caption) for caption in captions])

    def _row(self, caption: str) -> int:
        high, low = np.frombuffer(xxhash.xxh3_128_digest(caption.encode()), ">u8")
        place = int(np.searchsorted(self._first, np.uint64(high)))
        while place < len(self._ids) and self._ids[place, 0] == high:
            if self._ids[place, 1] == low:
                return int(self._order[place])
            place += 1
        raise StudentError(
            f"{self.reader.path} lacks the caption {caption[:80]!r}: build it over the captions of "
            "these very pairs, with near duplicates kept"
        )


def passed_over(folder: Path) -> set[str]:
    """The names of the images that a stage in this folder passed over, in all its processes."""
    file = folder / BROKEN_FILE
    if not file.is_file():
        return set()
    with file.open(encoding="utf-8") as lines:
        return {json.loads(line)["image"] for line in lines if line.endswith("\n")}


def seen(
    seeing: Seeing,
    student: Student,
    states: CaptionStates | None,
    folder: Path,
    micro_batch: int | None,
) -> Samples:
    """Pairs as samples: an image's tokens and pixels, and its caption or the caption's state.

    Images that are passed over are written to `folder`.
    """
    pairs = seeing.pairs
    assert student.vision is not None
    preprocessing = student.vision.preprocessing
    held_out = len(pairs.train) + np.arange(len(pairs.held_out))
    rows_of_pairs = np.concatenate([pairs.train, pairs.held_out])

    def told(name: str, why: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # One short write at the end of the file: processes do not cut into each other's lines.
        with (folder / BROKEN_FILE).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"image": name, "problem": why}) + "\n")

    def of(rows: Rows) -> tuple[StudentBatch, Target]:
        among = pairs.train if rows[0] < len(pairs.train) else pairs.held_out
        found, pixels = pairs.load(rows_of_pairs[rows], preprocessing, among=among, on_broken=told)
        images = student.batch(list(torch.from_numpy(pixels)), micro_batch=micro_batch)
        captions = pairs.captions(found)
        if states is None:
            return images, student.batch(captions)
        return images, PooledBatch(torch.from_numpy(states.states(captions)))

    return Samples(
        train=len(pairs.train),
        held_out=held_out,
        of=of,
        rows_per_shard=ROWS_PER_WINDOW,
        where=str(pairs.spec.path or pairs.spec.dataset or pairs.spec.generator),
    )
