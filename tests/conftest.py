"""What all tests share: no network, one thread a matrix, and one small real encoder."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from teacher_cache.reader import CacheReader

# Before any library reads them. Small matrices are computed faster than a second thread is woken.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def memory_folder() -> Iterator[Path]:
    """A folder for very many small files: in memory, where there is such a place."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a BERT of three layers, 32 wide, at most 48 tokens."""
    from small_models import write_encoder

    return write_encoder(tmp_path_factory.mktemp("models") / "small-bert")


@pytest.fixture(scope="session")
def cache(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> "CacheReader":
    """A finished cache under two teachers of different natures. Its files are not to be changed."""
    from jobs import bert, corpus, lsa, made, write_corpus

    from teacher_cache.reader import CacheReader

    folder = tmp_path_factory.mktemp("built")
    write_corpus(folder)
    made(folder / "cache", corpus(folder), [bert(small_encoder), lsa()])
    return CacheReader(folder / "cache")
