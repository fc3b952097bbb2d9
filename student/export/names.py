"""How the heads of a student are named where brackets cannot be."""

from __future__ import annotations

from student.stages import head_of


def plain_name(entry: str) -> str:
    """The name of a head, or of its first columns: `fc2`, `fc1_512`."""
    head, columns = head_of(entry)
    return head if columns is None else f"{head}_{columns}"


def dense_folder(entry: str) -> str:
    """Where the matrix of a head lies in an exported folder."""
    return f"2_Dense_{plain_name(entry)}"
