"""`jasper-cache`: build, inspect, verify and repair a teacher cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import bar, default_device, phase, print_field, quiet_libraries, run
from cli.export import export
from cli.golden import golden
from cli.inspect import inspect
from cli.join import FormatOption, join, merge
from cli.names import pick
from cli.options import RayAddressOption
from cli.repair import repair
from cli.search import search

if TYPE_CHECKING:
    from cli.recipe import Recipe
    from data.corpus import CorpusSpec
    from teacher_cache.build import Engine
    from teacher_cache.ranks import Rank
    from teacher_cache.teachers import Teacher

app = typer.Typer(
    help="Phase 1: run the teachers once over the texts and keep their vectors.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

CacheArgument = Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)]


def _show_fields(asked: bool) -> None:
    if asked:
        from cli.recipe_fields import sections

        for section in sections():
            typer.echo(f"{section.head or 'At the top'}: {section.meaning}")
            for name, default, meaning in section.fields:
                print_field(name, default, meaning)
            typer.echo()
        typer.echo("[stages.N]: jasper-train --stages")
        raise typer.Exit


@app.command()
def build(
    recipe: Annotated[
        Path, typer.Option(help="Recipe: its corpus and teachers.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the cache.", show_default=False)],
    teachers: Annotated[
        str | None,
        typer.Option(help="Only these of the recipe's teachers, e.g. stella,nv-embed."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many texts (part of the identity).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 … (default: this rank's GPU, else cpu).")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Padded tokens in a batch (default: by device).")
    ] = None,
    keep_pooled: Annotated[
        str | None,
        typer.Option(
            help="Also keep the pooled state of this teacher, which the student starts as: "
            "stage 1 then needs no transformer."
        ),
    ] = None,
    shard_format: FormatOption = None,
    engine: Annotated[
        str, typer.Option(help="local (this process, or every rank of a launcher) or ray.")
    ] = "local",
    ray_address: RayAddressOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Most Ray workers (default: one per GPU, or core).")
    ] = None,
    golden: Annotated[
        list[Path] | None,
        typer.Option(help="Golden file that its teacher must agree with first; may be repeated."),
    ] = None,
    _fields: Annotated[
        bool,
        typer.Option(
            "--fields",
            is_eager=True,
            callback=_show_fields,
            help="Print everything that a recipe can say.",
        ),
    ] = False,
) -> None:
    """Encode a recipe's texts under its teachers, or finish what was begun.

    Interrupt it at any time: the same command goes on from the last finished shard. Under
    `accelerate launch`, `torchrun` or `srun` every process takes its own shards; with
    `--engine ray` a cluster that may grow and shrink does.

    Example: `jasper-cache build --recipe recipes/demo.toml --out cache/`
    """
    from cli.recipe import load

    book, base = load(recipe)
    corpus_spec, chosen = _job(book, recipe, teachers, limit, keep_pooled)
    from data.corpus import Corpus
    from teacher_cache.build import Options
    from teacher_cache.build import build as build_cache
    from teacher_cache.ranks import Rank

    quiet_libraries()
    rank = Rank.from_environment()
    chosen_engine = _engine(engine, rank, ray_address, device, workers)
    options = Options(
        rank=rank,
        device=device or default_device(rank.local),
        token_budget=batch_tokens,
        goldens=tuple(golden or ()),
        shard_format=shard_format,
    )
    manifest = build_cache(
        out,
        Corpus(corpus_spec, base),
        chosen,
        base=base,
        options=options,
        phase=phase,
        engine=chosen_engine,
    )
    if manifest is None:
        typer.echo(f"rank {rank.index} is done; others still work on {out}")
    else:
        typer.echo(
            f"{out}: {manifest.rows:,} rows × {manifest.width} in {len(manifest.shards)} shards, "
            f"{manifest.held_out_rows:,} held out, identity {manifest.identity}"
        )


@app.command()
def verify(cache: CacheArgument) -> None:
    """Read every byte of a cache and compare it with its records; exit 1 if they differ."""
    from teacher_cache.reader import CacheReader
    from teacher_cache.verify import verify as verify_cache

    reader = CacheReader(cache, check_sizes=False)
    with bar("verifying", len(reader.manifest.shards), "shards") as update:
        problems = verify_cache(reader, lambda count: update(count, ""))
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"mend it with: jasper-cache repair {cache}")
        raise typer.Exit(1)
    typer.echo(f"{cache}: {len(reader):,} rows in {len(reader.manifest.shards)} shards, all whole")


app.command()(inspect)
app.command()(golden)
app.command()(repair)
app.command()(search)
app.command()(join)
app.command()(merge)
app.command()(export)


def _job(
    book: Recipe, path: Path, names: str | None, limit: int | None, keep_pooled: str | None
) -> tuple[CorpusSpec, list[Teacher]]:
    from cli.recipe import RecipeError
    from teacher_cache.teachers import resolve

    if book.corpus is None or not book.teachers:
        raise RecipeError(f"{path} has no [corpus] or no [[teachers]]: a cache needs both")
    specs = {spec.name: spec for spec in book.teachers}
    if len(specs) < len(book.teachers):
        found = ", ".join(spec.name for spec in book.teachers)
        raise RecipeError(f"{path}: expected teachers of different names, found {found}")
    if names is not None:
        specs = {name: specs[name] for name in pick(names, list(specs), str(path))}
    if keep_pooled is not None:
        for name in pick(keep_pooled, list(specs), str(path)):
            specs[name] = specs[name].model_copy(update={"keep_pooled": True})
    corpus = book.corpus if limit is None else book.corpus.model_copy(update={"texts": limit})
    return corpus, [resolve(spec) for spec in specs.values()]


def _engine(
    name: str, rank: Rank, address: str | None, device: str | None, workers: int | None
) -> Engine:
    from cli.recipe import RecipeError
    from teacher_cache.build import encode_here

    if name == "local":
        if address is not None or workers is not None:
            raise RecipeError("--ray-address and --workers belong to --engine ray")
        return encode_here
    if name != "ray":
        raise RecipeError(f"--engine is local or ray, found {name!r}")
    if rank.world > 1:
        raise RecipeError(
            f"--engine ray spreads the work by itself: start it once, not as rank {rank.index} of "
            f"{rank.world} of a launcher"
        )
    from teacher_cache.ray_engine import Cluster

    return Cluster(address, device, workers)


def main() -> None:
    """Entry point of `jasper-cache`."""
    run(app)


if __name__ == "__main__":
    main()
