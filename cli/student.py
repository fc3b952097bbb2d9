"""`jasper-student`: measure a trained student and hand it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import phase, print_table, quiet_libraries, run
from cli.recall import recall

if TYPE_CHECKING:
    from student.model import Student

app = typer.Typer(
    help="What a trained student keeps of its teachers, and how it leaves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

RunArgument = Annotated[
    Path, typer.Argument(help="A run (its last stage) or one stage of it.", show_default=False)
]


@app.command()
def evaluate(
    trained: RunArgument,
    cache: Annotated[
        Path | None, typer.Option(help="The cache (default: the one it was trained from).")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Heads, or first columns of them: fc1,fc1[:512] (default: all trained)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Measure every head against every teacher on the cache's held-out rows.

    cosine: mean cosine with the teacher's vector (only where the widths agree). order: Spearman's
    correlation of all pairwise similarities. neighbours: share of each text's ten nearest
    teacher neighbours that the student keeps. `init` is the untrained student's pooled state.

    Example: `jasper-student evaluate runs/a`
    """
    from cli.recipe import RecipeError
    from student.run import last_stage, read_record
    from teacher_cache.reader import CacheReader

    folder = last_stage(trained)
    record = read_record(folder)
    reader = CacheReader(cache or record["cache_path"])
    if reader.identity != record["cache"]:
        raise RecipeError(
            f"{folder} was trained from the cache {record['cache']}, {reader.path} is "
            f"{reader.identity}; give the one it was trained from as --cache"
        )
    entries = record["trained_heads"] if heads is None else _trained(heads, record["trained_heads"])
    if len(reader.held_out_rows) < 3:
        raise RecipeError(f"{reader.path} has no held-out rows: set corpus.held_out in its recipe")
    from student.evaluation.held_out import evaluate as measure
    from student.model import create, load

    quiet_libraries()
    student = load(folder / "model")
    untrained = create(
        student.spec, Path(record["init_path"]), student.head_widths["fc1"], record["seed"]
    )
    total = 2 * len(reader.held_out_rows)
    with phase("encoding held-out texts", total) as advance:
        result = measure(
            student,
            untrained,
            reader,
            record["teachers"],
            heads=entries,
            advance=advance,
        )
    result = {"stage": record["number"], "cache": record["cache"], **result}
    path = folder / "evaluation.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    print_table(
        f"Stage {record['number']} on {result['rows']:,} held-out texts",
        ("vector", "width", "teacher", "cosine", "order", "neighbours@10"),
        [
            (
                name,
                str(result["widths"][name]),
                teacher,
                "-" if figures["cosine"] is None else f"{figures['cosine']:.4f}",
                f"{figures['order']:.4f}",
                f"{figures['neighbours']:.4f}",
            )
            for name, teachers in result["retention"].items()
            for teacher, figures in teachers.items()
        ],
    )
    typer.echo(f"the same as JSON: {path}")


def _trained(heads: str, trained: list[str]) -> list[str]:
    from cli.recipe import RecipeError
    from student.stages import head_of

    entries = [entry.strip() for entry in heads.split(",")]
    for entry in entries:
        if entry not in trained and head_of(entry)[0] not in trained:
            raise RecipeError(
                f"--heads: the run has not trained {entry!r}; it has {', '.join(trained)}"
            )
    return entries


app.command()(recall)


@app.command()
def export(
    trained: RunArgument,
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    head: Annotated[
        str,
        typer.Option(help="fc1, fc2 …, fc1[:512]: its first columns, or pooled: without a head."),
    ] = "fc1",
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="sentence-transformers: one head, texts alone; jasper: the layout of the released "
            "checkpoint, all trained heads, texts and images.",
        ),
    ] = "sentence-transformers",
    dtype: Annotated[
        str, typer.Option(help="Of jasper's weights: float32, or bfloat16 as in the release.")
    ] = "float32",
) -> None:
    """Write a folder that loads without any code of this project.

    Example: `jasper-student export runs/a out/ --head fc2`
    """
    from cli.recipe import RecipeError

    if layout not in ("sentence-transformers", "jasper"):
        raise RecipeError(f"--format is sentence-transformers or jasper, found {layout!r}")
    if dtype not in ("float32", "bfloat16"):
        raise RecipeError(f"--dtype is float32 or bfloat16, found {dtype!r}")
    from student.run import last_stage, read_record

    folder = last_stage(trained)
    record = read_record(folder)
    from student.export import export as write
    from student.model import load

    quiet_libraries()
    student: Student = load(folder / "model")
    if layout == "jasper":
        from student.export import export_jasper

        export_jasper(student, out, dtype=dtype, record=record)
        typer.echo(f"{out}: stage {record['number']} in the layout of the released checkpoint")
        return
    write(student, out, head=head, record=record)
    typer.echo(
        f"{out}: stage {record['number']}, {head}. Load it, in any environment that has "
        "sentence-transformers, with:\n\n"
        "    from sentence_transformers import SentenceTransformer\n"
        f'    model = SentenceTransformer("{out}")\n'
        '    vectors = model.encode(["a text", "another"])\n'
    )


def main() -> None:
    """Entry point of `jasper-student`."""
    run(app)


if __name__ == "__main__":
    main()
