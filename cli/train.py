"""`jasper-train`: train a stage of a student from a finished cache, with no teacher in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import (
    bar,
    is_first_process,
    note,
    phase,
    print_field,
    print_table,
    quiet_libraries,
    run,
    size,
)
from cli.names import pick
from cli.options import PrecisionOption, check_precision

app = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False)


def _show_stages(asked: bool) -> None:
    if asked:
        from student.stage_fields import TABLE_COLUMNS, fields, table

        print_table("Stages (the paper's)", TABLE_COLUMNS, table())
        typer.echo("Fields of a stage, under [stages.N] in a recipe:")
        for name, default, meaning in fields():
            print_field(name, default, meaning)
        raise typer.Exit


@app.command()
def train(
    stage: Annotated[int, typer.Option(help="Which stage of the table.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    cache: Annotated[
        Path | None,
        typer.Option(help="A finished cache (default: that of the stage it starts from)."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe: its student and stages (the paper's without one).")
    ] = None,
    teachers: Annotated[
        str | None, typer.Option(help="Learn from some of the cache's teachers, e.g. stella.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Change loss weights: relative=0,similarity=100,margin=0.02.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the stage.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=3, help="Texts in a global batch.")] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Texts of a process in memory at a time: for larger batches."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of order and new heads.")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Start from RUN/stage-N, or `fresh`; else from the stage before."),
    ] = None,
    precision: PrecisionOption = "auto",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    pooled: Annotated[
        str,
        typer.Option(
            help="Train heads on the cache's pooled states where they are the frozen body's: auto, "
            "require or off."
        ),
    ] = "auto",
    captions: Annotated[
        Path | None,
        typer.Option(help="Stage 4: a cache over the captions, made by the student of stage 3."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what this stage has done so far.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the checksums of all shards first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")
    ] = False,
    _stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            is_eager=True,
            callback=_show_stages,
            help="Print the table of stages, and every field that a recipe can change.",
        ),
    ] = False,
) -> None:
    """Train one stage of a student.

    Stage 1 trains FC1 alone, stage 2 also the last three layers, stage 3 everything on the text
    side with the reduced heads, stage 4 the vision encoder, on images and their captions. A stage
    starts from the one before it in the same run; one that was interrupted goes on from its last
    checkpoint; one that is done is left alone.

    Example: `jasper-train --stage 1 --cache cache/ --out runs/a --recipe recipes/demo.toml`

    Many variants with seeds and error bars, as one command: `jasper-train sweep --help`
    """
    from cli.recipe import RecipeError, load
    from cli.seeing import seeing_of
    from student.run import StageRun, cache_of, facts_of, finished, start_of
    from student.stage_checks import check
    from student.stages import with_weights
    from teacher_cache.ranks import Rank
    from teacher_cache.reader import CacheReader

    check_precision(precision)
    if pooled not in ("auto", "require", "off"):
        raise RecipeError(f"--pooled is auto, require or off, found {pooled!r}")
    book, base = load(recipe)
    changes = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    spec = book.model_copy(
        update={"stages": {**book.stages, stage: {**book.stages.get(stage, {}), **changes}}}
    ).stage(stage)
    if weights is not None:
        spec = with_weights({stage: spec}, _weights(weights))[stage]
    cache = cache or cache_of(out, stage, init_from)
    reader = CacheReader(cache)
    if verify and Rank.from_environment().local == 0:
        with bar("verifying", len(reader.manifest.shards), "shards") as tell:
            CacheReader(cache, verify=True, advance=lambda count: tell(count, ""))
    asked = None if teachers is None else pick(teachers, reader.teachers, str(cache))
    names = tuple(block.teacher for block in reader.blocks(asked))
    target_width = reader.width(names)
    widths = {"fc1": target_width, **book.student.reduced_heads}
    stage_run = StageRun(
        out=out,
        stage=stage,
        spec=spec,
        student=book.student.text_side,
        identity=reader.identity,
        teachers=names,
        seed=book.seed if seed is None else seed,
        init_from=init_from,
    )
    start_of(stage_run)  # refuse before a model is fetched or torch is loaded
    seeing = seeing_of(book, base, spec, captions)
    if seeing is not None:
        stage_run = replace(stage_run, student=book.student, images=seeing.pairs.identity)
    rows = len(reader.train_rows) if seeing is None else len(seeing.pairs.train)
    check(spec, widths, target_width, rows, reader.teachers)
    from teacher_cache.models import locate

    init, _ = locate(book.student.init, book.student.revision, what="the student's init", base=base)
    if dry_run:
        if not restart and finished(stage_run, facts_of(stage_run, init)):
            typer.echo(f"{stage_run.model}: done before; --restart would train it anew")
            return
        _print_plan(stage_run, reader, init, seeing)
        return
    from student.launcher import asked_for

    asked_for()  # refuse before a model is loaded
    from student.train import Settings
    from student.train import train as train_stage

    quiet_libraries()
    with ExitStack() as bars:
        update: Callable[[int, str], None] | None = None
        seen = 0

        def on_step(done: int, metrics: dict[str, float]) -> None:
            nonlocal seen, update
            if update is None:
                opened = bar(f"stage {stage}", spec.steps - done, "steps")
                update = bars.enter_context(opened)
            else:
                memory = size(metrics["peak_memory"])
                update(done - seen, f"loss {metrics['loss']:.4f}, at most {memory}")
            seen = done

        trained = train_stage(
            stage_run,
            reader,
            init,
            seeing=seeing,
            settings=Settings(
                precision=precision,  # type: ignore[arg-type]
                save_every=save_every,
                cpu=cpu,
                pooled=pooled,  # type: ignore[arg-type]
            ),
            restart=restart,
            on_step=on_step,
            phase=phase,
            say=note,
        )
    if is_first_process():
        typer.echo(f"{stage_run.model}: {spec.purpose}{'' if trained else ' (done before)'}")


def _weights(text: str) -> dict[str, float]:
    from cli.recipe import RecipeError

    try:
        pairs = (item.split("=") for item in text.split(","))
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise RecipeError(f"--weights is like relative=0,similarity=100, found {text!r}") from None


def _print_plan(stage_run: Any, reader: Any, init: Path, seeing: Any) -> None:
    from student.plan import plan

    quiet_libraries()
    facts = plan(stage_run, reader, init, seeing)
    typer.echo(json.dumps(facts["stage"], indent=1))
    print_table(
        f"Stage {stage_run.stage}: what would be trained",
        ("what", "how much"),
        [
            ("starts from", facts["start"]),
            ("parameters", f"{facts['parameters']:,}"),
            ("of these trained", f"{facts['trained']:,}"),
            ("rows to train on", f"{facts['rows']:,}"),
            ("steps x global batch", f"{stage_run.spec.steps:,} x {stage_run.spec.batch_size}"),
            ("epochs", f"{facts['epochs']:.2f}"),
            ("target width", f"{facts['target_width']:,}"),
            ("weights, gradients, optimizer", size(facts["state_bytes"])),
            ("activations of a batch, about", size(facts["activation_bytes"])),
        ],
    )


def main() -> None:
    """Entry point of `jasper-train`: it trains a stage, and as `jasper-train sweep` many."""
    if sys.argv[1:2] == ["sweep"]:
        from cli.sweep import app as sweep_app

        run(sweep_app)
    run(app)


if __name__ == "__main__":
    main()
