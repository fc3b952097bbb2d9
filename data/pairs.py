"""Image–caption pairs: where they lie, which are held out, and their pixels, decoded by workers.

Opening reads captions and remembers places; images are read when they are asked for. An image that
cannot be used gives its turn to the next one: which one that is depends on the data alone, so that
every run, and every number of processes, sees the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from data.drawings import Drawings
from data.files import CorpusError
from data.images import ImageError, Preprocessing
from data.pair_sources import PairSource, open_pairs
from data.pairs_spec import PairsSpec

Rows = NDArray[np.int64]


class Pairs:
    """The pairs of a `PairsSpec`, numbered from 0: those to `train` on, and those `held_out`.

    `base` is the folder that relative paths start from. `skipped` are the rows that made no pair,
    `broken` maps the images that were passed over so far to why.

    Raises:
        CorpusError: nothing lies there, it cannot be read, or a row has no caption or image.
    """

    def __init__(self, spec: PairsSpec, base: Path = Path()) -> None:
        self.spec = spec
        self.source: PairSource = (
            Drawings(spec.count, spec.seed) if spec.generator else self._open(base)
        )
        self._captions: pa.ChunkedArray = self.source.captions
        self.skipped = self.source.skipped
        kept_apart = np.zeros(len(self), bool)
        digest = xxhash.xxh3_128()
        for row, caption in enumerate(self._captions):
            text = caption.as_py().encode()
            # A file of pairs may have a name of any bytes.
            facts = f"{self.source.name(row)}\0{len(text)}\0"
            digest.update(facts.encode("utf-8", "surrogateescape") + text)
            # As a corpus holds out texts: a cache of these captions may hold out the same ones.
            of_text = xxhash.xxh3_128_digest(text)
            draw = xxhash.xxh3_64_intdigest(of_text, spec.seed)
            kept_apart[row] = draw < spec.held_out * 2**64
        self.train: Rows = np.flatnonzero(~kept_apart)
        self.held_out: Rows = np.flatnonzero(kept_apart)
        self.identity = f"{digest.hexdigest()}-{spec.held_out:g}-{spec.seed}"
        self.broken: dict[str, str] = {}
        self._lock = Lock()

    def _open(self, base: Path) -> PairSource:
        spec = self.spec
        return open_pairs(
            path=spec.path, dataset=spec.dataset, subset=spec.subset, split=spec.split,
            revision=spec.revision, images=spec.images, image_field=spec.image_field,
            caption_field=spec.caption_field, skip_bad=spec.bad_rows == "skip", base=base,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, rows: Sequence[int] | Rows) -> list[str]:
        """The captions of these rows."""
        return [self._captions[int(row)].as_py() for row in rows]

    def load(
        self,
        rows: Rows,
        preprocessing: Preprocessing,
        *,
        among: Rows,
        on_broken: Callable[[str, str], None] = lambda _name, _why: None,
    ) -> tuple[Rows, NDArray[np.uint8]]:
        """The pixels [n, 3, side, side] of rows, and which rows they are.

        In the place of a row whose image cannot be used stands the next usable one of `among`, a
        sorted list that holds the rows, from its end on to its beginning. `on_broken` is told the
        name of each such image once, and why.

        Raises:
            CorpusError: more images than `most_broken` cannot be used, or none can.
        """
        one = partial(self._usable, preprocessing=preprocessing, among=among, told=on_broken)
        with ThreadPoolExecutor(self.spec.workers) as workers:
            found = list(workers.map(one, rows.tolist()))
        return np.array([row for row, _ in found]), np.stack([pixels for _, pixels in found])

    def _usable(
        self,
        row: int,
        *,
        preprocessing: Preprocessing,
        among: Rows,
        told: Callable[[str, str], None],
    ) -> tuple[int, NDArray[np.uint8]]:
        start = int(np.searchsorted(among, row))
        for step in range(len(among)):
            candidate = int(among[(start + step) % len(among)])
            try:
                return candidate, preprocessing.pixels(self.source.read(candidate))
            except (ImageError, OSError, UnicodeError) as error:
                self._passed_over(self.source.name(candidate), str(error), told)
        raise CorpusError(f"none of {len(among)} images can be used")

    def _passed_over(self, name: str, why: str, told: Callable[[str, str], None]) -> None:
        with self._lock:
            if name in self.broken:
                return
            self.broken[name] = why
            told(name, why)
            if len(self.broken) > self.spec.most_broken:
                shown = "; ".join(f"{n}: {w}" for n, w in list(self.broken.items())[:3])
                raise CorpusError(
                    f"{len(self.broken)} images cannot be used, at most {self.spec.most_broken} "
                    f"may be passed over (images.most_broken): {shown}"
                )
