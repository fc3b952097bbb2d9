"""Phase 2: train, measure and export a student from a finished teacher cache.

`from student import load` gives a trained student to embed with (`student/embedder.py`).

May import `teacher_cache.format`, `teacher_cache.reader` and `teacher_cache.models`, `data.files`,
`data.images` and `data.pairs`, nothing else of ours: no teacher is ever loaded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.embedder import Embedder, load

__all__ = ["Embedder", "load"]


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: most modules of this folder need no torch.
    if name in __all__:
        from student import embedder

        return getattr(embedder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
