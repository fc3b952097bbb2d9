"""`jasper-student export`: a student as a folder that loads without any code of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import quiet_libraries

FORMATS = ("sentence-transformers", "jasper")
DTYPES = ("float32", "bfloat16")


def export(
    trained: Annotated[
        Path,
        typer.Argument(help="A run (its last stage) or one stage of it.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    head: Annotated[
        str | None,
        typer.Option(
            help="The head that is used unless another is chosen: fc1, fc2 …, its width (1024), "
            "fc1[:512]: first columns, or pooled: the body alone (default: fc1; with --format "
            "jasper the one that is 1024 wide, and whole heads alone).",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="sentence-transformers: texts alone; jasper: the layout of the released "
            "checkpoint, texts and images. Both hold every trained head.",
        ),
    ] = "sentence-transformers",
    dtype: Annotated[
        str, typer.Option(help="Of jasper's weights: float32, or bfloat16 as in the release.")
    ] = "float32",
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Also an ONNX graph, checked with onnxruntime (the extra `onnx`)."
        ),
    ] = False,
) -> None:
    """Write a folder for other programs, with a card: sentence-transformers' layout, or Jasper's.

    The card names the teachers and their licences, texts and recipe, and what `evaluate` measured.

    Example: `jasper-student export runs/a out/ --head 1024`
    """
    from cli.recipe import RecipeError

    if layout not in FORMATS:
        raise RecipeError(f"--format is {' or '.join(FORMATS)}, found {layout!r}")
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype is {' or '.join(DTYPES)}, found {dtype!r}")
    if onnx and layout == "jasper":
        raise RecipeError("--onnx goes with --format sentence-transformers")
    if dtype != "float32" and layout != "jasper":
        raise RecipeError("--dtype goes with --format jasper; the other format is in float32")
    from student.durable import refuse_full
    from student.stages import FULL_HEAD
    from student.trained import find

    found = find(trained)
    record = found.record
    if record is None:
        raise RecipeError(f"{trained} has no run.json; expected a run or one stage of it")
    if head is None and layout != "jasper":
        head = FULL_HEAD
    chosen = None if head is None else found.heads.choose(head)
    refuse_full(out)
    from student.export.folder import export as write
    from student.export.jasper_layout import export_jasper
    from student.export.past import past_of
    from student.model import load

    if onnx and chosen is not None:
        from student.export.onnx_model import require

        require(chosen)
    quiet_libraries()
    student, past = load(found.folder), past_of(found.folder.resolve().parent)
    if chosen is None or layout == "jasper":
        export_jasper(student, out, dtype=dtype, head=chosen, record=record, past=past)
        typer.echo(f"{out}: stage {record['number']} in the layout of the released checkpoint")
        return
    write(student, out, head=chosen, record=record, past=past, onnx=onnx, say=typer.echo)
    typer.echo(
        f"{out}: stage {record['number']}, {chosen}. Load it, in any environment that has "
        "sentence-transformers, with:\n\n"
        "    from sentence_transformers import SentenceTransformer\n"
        f'    model = SentenceTransformer("{out}")\n'
        '    vectors = model.encode(["a text", "another"])\n'
    )
