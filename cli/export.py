"""`jasper-cache export`: a cache as Parquet files with a dataset card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import phase, size
from cli.names import pick


def export(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="New folder to write.", show_default=False)],
    parquet: Annotated[
        bool, typer.Option("--parquet", help="As Parquet; there is no other form, so this is on.")
    ] = True,
    teachers: Annotated[
        str | None, typer.Option(help="Only these teachers' vectors, e.g. stella.")
    ] = None,
    per_teacher: Annotated[
        bool, typer.Option(help="One column of unit vectors for each teacher, not one for all.")
    ] = False,
) -> None:
    """Write a cache as Parquet with a dataset card, for Polars, DuckDB and Hugging Face datasets.

    Vectors inherit the question of their teachers' licences: the card names them all.
    Interrupt it at any time: the same command goes on from the last finished file.

    Example: `jasper-cache export cache/ vectors/ --parquet`
    """
    from teacher_cache.export import export as export_cache
    from teacher_cache.reader import CacheReader

    reader = CacheReader(cache)
    chosen = None if teachers is None else pick(teachers, reader.teachers, str(cache))
    written = export_cache(reader, out, teachers=chosen, per_teacher=per_teacher, phase=phase)
    typer.echo(
        f"{out}: {len(reader):,} rows of {', '.join(chosen or reader.teachers)} as Parquet, "
        f"{size(written)}, with README.md"
    )
    for block in reader.blocks(chosen):
        typer.echo(f"licence of {block.teacher}: {block.licence}")
