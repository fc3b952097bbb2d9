"""`jasper-cache repair`: mend what is damaged, from what is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import default_device, phase, quiet_libraries


def repair(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)],
    recipe: Annotated[
        Path | None,
        typer.Option(help="The recipe it was built with, where a shard must be encoded again."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 … (default: a GPU if there is one).")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Padded tokens in a batch (default: by device).")
    ] = None,
) -> None:
    """Verify a finished cache, mend what is damaged, and verify that.

    Records, manifest, plan and texts are written again from each other, which takes no teacher.
    A damaged shard is encoded again, alone, by the very teachers of the cache: it keeps its
    identity, and checkpoints go on with it.

    Example: `jasper-cache repair cache/ --recipe recipes/demo.toml`
    """
    from cli.recipe import load
    from teacher_cache.build import Options
    from teacher_cache.reader import CacheReader
    from teacher_cache.repair import repair as repair_cache
    from teacher_cache.teachers import resolve

    book, base = load(recipe)
    teachers = [resolve(spec) for spec in book.teachers]
    if teachers:
        quiet_libraries()
        device = device or default_device()
    repair_cache(
        cache,
        teachers,
        base=base,
        options=Options(device=device or "cpu", token_budget=batch_tokens),
        phase=phase,
        tell=typer.echo,
    )
    typer.echo(f"{cache}: whole, identity {CacheReader(cache).identity}")
