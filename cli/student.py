"""`jasper-student`: measure a trained student and hand it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import quiet_libraries, run
from cli.evaluate import evaluate
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


app.command()(evaluate)
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
