"""Files mapped into memory, read-only: no handle is kept, and no page is fetched before its time.

pyarrow's own memory map asks the kernel for all that is read through it, so that opening a shard
would fetch its 200 MB; the standard library's keeps a file handle for each mapping, and a large
cache has more shards than a process may have files.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """An address range that is unmapped when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            self.size = os.fstat(handle).st_size
            if self.size == 0:
                raise ValueError("it is empty")
            address = _libc().mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        finally:
            os.close(handle)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        self.address: int = address
        weakref.finalize(self, _libc().munmap, address, self.size)


def map_file(path: Path) -> pa.Buffer:
    """The bytes of a file, mapped; they stay mapped as long as the buffer or a part of it lives.

    Raises:
        OSError: the file cannot be opened or mapped.
        ValueError: it is empty.
    """
    mapping = _Mapping(path)
    return pa.foreign_buffer(mapping.address, mapping.size, base=mapping)


def will_need(values: NDArray[Any]) -> None:
    """Ask the kernel for the pages under a mapped array; returns at once.

    A page that is not in memory stops its reader until the disk has given it, one page after the
    other; asked for in advance, all rows of a batch are fetched together. It is a hint: that the
    kernel may ignore it is no error.
    """
    address = values.__array_interface__["data"][0]
    start = address - address % mmap.PAGESIZE
    _libc().madvise(start, address + values.nbytes - start, mmap.MADV_WILLNEED)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
