"""Builders on machines that agree on everything but the last bits, as real ones do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from teacher_cache.encoders import tfidf_svd
from teacher_cache.encoders.protocol import Encoded


@contextmanager
def another_machine(number: int) -> Iterator[None]:
    """What is fitted and encoded inside differs a little by the number; 0 changes nothing."""
    encode, fit = tfidf_svd.TfidfSvdEncoder.encode, tfidf_svd.fit

    def encode_otherwise(self: Any, prepared: Any, on_done: Callable[[int], None]) -> Encoded:
        encoded = encode(self, prepared, on_done)
        return Encoded(encoded.vectors * (1 + number * 2**-16), encoded.tokens)

    def fit_otherwise(folder: Path, *others: Any) -> None:
        fit(folder, *others)
        weights = folder / tfidf_svd.WEIGHTS_FILE
        data = weights.read_bytes()
        weights.write_bytes(data[:-4] + bytes([data[-4] ^ number]) + data[-3:])

    tfidf_svd.TfidfSvdEncoder.encode, tfidf_svd.fit = encode_otherwise, fit_otherwise  # type: ignore[method-assign]
    try:
        yield
    finally:
        tfidf_svd.TfidfSvdEncoder.encode, tfidf_svd.fit = encode, fit  # type: ignore[method-assign]
