"""`jasper-train sweep`: ablations from one cache, with seeds and error bars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import print_error, print_table, quiet_libraries
from cli.options import PrecisionOption, RayAddressOption, check_precision

if TYPE_CHECKING:
    from student.sweep.plan import Plan
    from student.sweep.runner import Engine, Job

app = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def _group() -> None:
    """Train students."""


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file.", show_default=False)],
    cache: Annotated[Path, typer.Option(help="A finished cache.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the sweep.", show_default=False)],
    recipe: Annotated[
        Path | None, typer.Option(help="Base recipe, instead of the one that the file names.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local (one stage after the other here) or ray: arms in parallel.")
    ] = "local",
    ray_address: RayAddressOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Most stages at a time on Ray (default: by room).")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="GPUs of a stage on Ray: 0.5 for two on one, 0 for none."),
    ] = None,
    precision: PrecisionOption = "auto",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print arms, stages and what they share, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Train the arms of a sweep from one cache, with every seed, and compare them.

    What is equal runs once: a stage that several arms have in common is trained for all of them.
    Interrupt it at any time: the same command goes on; what is done is left alone, and after a
    change of the file only what changed is trained. An arm that fails does not stop the others.

    Example: `jasper-train sweep recipes/sweeps/losses.toml --cache cache/ --out sweeps/losses`
    """
    from cli.recipe import RecipeError, load
    from student.sweep.plan import Base, Source, plan
    from student.sweep.results import check_folder
    from student.sweep.spec import load as load_sweep
    from teacher_cache.ranks import Rank
    from teacher_cache.reader import CacheReader

    check_precision(precision)
    if engine not in ("local", "ray"):
        raise RecipeError(f"--engine is local or ray, found {engine!r}")
    if engine == "local" and (ray_address, workers, gpus) != (None, None, None):
        raise RecipeError("--ray-address, --workers and --gpus belong to --engine ray")
    if Rank.from_environment().world > 1:
        raise RecipeError(
            "a sweep trains each stage in one process: start it once, without a launcher; "
            "--engine ray trains arms in parallel"
        )
    asked = load_sweep(file)
    named = None if asked.recipe is None else file.parent / asked.recipe
    book, base = load(recipe or named)
    reader = CacheReader(cache)
    laid_out = plan(
        asked, Base(book.student, book.stages), Source.of(reader), out, precision=precision
    )
    check_folder(laid_out)
    from student.sweep.runner import jobs_of, link_arms
    from student.train import Settings

    quiet_libraries()
    settings = Settings(precision=precision, save_every=save_every, cpu=cpu)  # type: ignore[arg-type]
    jobs = jobs_of(laid_out, reader, base, settings)
    if dry_run:
        _print_plan(laid_out, jobs, as_json=as_json)
        return
    link_arms(laid_out)
    problems: dict[str, str] = {}
    if jobs:
        from cli.sweep_progress import board

        with (
            _engine(engine, ray_address, workers, 0.0 if cpu else gpus) as train,
            board(laid_out, jobs) as shown,
        ):
            for key, problem in train(jobs, shown.tell):
                shown.end(key, problem)
                if problem is not None:
                    problems[key] = problem
    _finish(laid_out, problems, as_json=as_json)


@contextmanager
def _engine(
    name: str, address: str | None, workers: int | None, gpus: float | None
) -> Iterator[Engine]:
    if name == "local":
        from student.sweep.runner import here

        yield here
        return
    from student.sweep.on_ray import OnRay
    from teacher_cache.ray_engine import connected

    with connected(address) as ray:
        yield OnRay(ray, gpus, workers)


def _print_plan(plan: Plan, jobs: list[Job], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_plan_as_data(plan, jobs), indent=1))
        return

    def steps(keys: Iterable[str]) -> str:
        return f"{sum(plan.stages[key].run.spec.steps for key in keys):,} steps"

    rows = []
    for arm in plan.arms:
        keys = plan.chains(arm.name)
        chain = plan.chain(next(iter(plan.ends[arm.name].values())))
        changes = ", ".join(f"{path} = {json.dumps(value)}" for path, value in arm.changes.items())
        rows.append(
            (
                f"{arm.name} (baseline)" if arm.name == plan.sweep.baseline else arm.name,
                changes or "-",
                " → ".join(str(plan.stages[key].run.stage) for key in chain),
                str(len(keys)),
                str(sum(len(plan.arms_of(key)) > 1 for key in keys)),
                steps(keys),
            )
        )
    columns = ("arm", "changes", "stages", "stage runs", "of these shared", "length")
    print_table(plan.sweep.question, columns, rows)
    asked = [key for arm in plan.arms for key in plan.chains(arm.name)]
    typer.echo(
        f"{len(plan.arms)} arms × {len(plan.sweep.seeds)} seeds: {len(asked):,} stage runs "
        f"({steps(asked)}), of which {len(plan.stages):,} differ ({steps(plan.stages)}); "
        f"{len(plan.stages) - len(jobs):,} are done, {len(jobs):,} to do "
        f"({steps(job.key for job in jobs)})"
    )


def _plan_as_data(plan: Plan, jobs: list[Job]) -> dict[str, Any]:
    to_do = {job.key for job in jobs}
    return {
        "arms": {
            arm.name: {"changes": dict(arm.changes), "stages": plan.chains(arm.name)}
            for arm in plan.arms
        },
        "stages": {
            key: {
                "stage": planned.run.stage,
                "seed": planned.run.seed,
                "steps": planned.run.spec.steps,
                "to do": key in to_do,
            }
            for key, planned in plan.stages.items()
        },
    }


def _finish(plan: Plan, problems: dict[str, str], *, as_json: bool) -> None:
    from student.sweep.results import legend, results, tables, write

    found = results(plan, problems)
    paths = write(found, plan.out)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(plan.sweep.question)
        for title, columns, rows in tables(plan, found):
            print_table(f"{title}: {found['rows']:,} held-out texts", columns, rows)
        typer.echo(legend(found))
        typer.echo(f"the same as JSON and CSV: {paths[0]}, {paths[1]}")
    failed = [arm for arm in found["arms"] if "problems" in arm]
    for arm in failed:
        for seed, problem in arm["problems"].items():
            print_error(f"arm {arm['arm']!r}, seed {seed}: {problem}")
    if failed:
        raise typer.Exit(1)
