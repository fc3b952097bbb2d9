"""`jasper-cache join` and `merge`: caches that were built apart, as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.console import phase
from cli.names import pick

if TYPE_CHECKING:
    from teacher_cache.format import Manifest

FormatOption = Annotated[
    Literal["arrow", "parquet"] | None,
    typer.Option(
        "--format",
        help="Shards as arrow (default) or parquet, which is slow to read in random order.",
    ),
]
Caches = Annotated[list[Path], typer.Argument(help="Folders of two or more caches.")]
Out = Annotated[Path, typer.Option(help="Folder of the cache to write.", show_default=False)]


def join(
    caches: Caches,
    out: Out,
    keep_pooled: Annotated[
        str | None,
        typer.Option(help="Whose pooled state stays, where several caches keep one."),
    ] = None,
    shard_format: FormatOption = None,
) -> None:
    """Write one cache of several with the same texts under different teachers.

    Rows are compared one by one; the result is what one build with all the teachers gives.
    Interrupt it at any time: the same command goes on from the last finished shard.

    Example: `jasper-cache join stella/ nv-embed/ --out both/`
    """
    from teacher_cache.join import join as join_caches
    from teacher_cache.reader import CacheReader

    readers = [CacheReader(path) for path in caches]
    if keep_pooled is not None:
        known = [teacher for reader in readers for teacher in reader.teachers]
        keep_pooled = ", ".join(pick(keep_pooled, known, "the caches"))
    manifest = join_caches(
        readers, out, keep_pooled=keep_pooled, shard_format=shard_format, phase=phase
    )
    typer.echo(f"{_told(out, manifest)} (teachers {', '.join(b.teacher for b in manifest.blocks)})")


def merge(caches: Caches, out: Out, shard_format: FormatOption = None) -> None:
    """Write one cache of several with other texts under the same teachers.

    Of a text that comes twice the first row stays; one that is held out anywhere is held out.
    Interrupt it at any time: the same command goes on from the last finished shard.

    Example: `jasper-cache merge monday/ tuesday/ --out week/`
    """
    from teacher_cache.merge import merge as merge_caches
    from teacher_cache.reader import CacheReader

    readers = [CacheReader(path) for path in caches]
    merged = merge_caches(readers, out, shard_format=shard_format, phase=phase)
    given = ", ".join(f"{rows:,} of {path}" for path, rows in zip(caches, merged.rows, strict=True))
    typer.echo(
        f"{_told(out, merged.manifest)}\n"
        f"rows: {given}; left out: {merged.duplicates:,} that came before, "
        f"{merged.leaks:,} that another cache holds out"
    )


def _told(out: Path, manifest: Manifest) -> str:
    return (
        f"{out}: {manifest.rows:,} rows × {manifest.width} in {len(manifest.shards)} shards, "
        f"{manifest.held_out_rows:,} held out, identity {manifest.identity}"
    )
