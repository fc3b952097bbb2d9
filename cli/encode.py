"""`jasper-student encode`: the vectors of a file of texts."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.console import phase, quiet_libraries, size

STANDARD_INPUT = "-"


def encode(
    trained: Annotated[
        Path,
        typer.Argument(
            help="A run (its last stage), a stage of it, its model, or a folder in the layout of "
            "the released Jasper checkpoint.",
            show_default=False,
        ),
    ],
    texts: Annotated[
        str,
        typer.Argument(
            help="A file: .txt (a text a line), .jsonl, .csv, .parquet, packed (.gz, .zst) or not; "
            "- for standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The file to write: .npy or .parquet.", show_default=False)
    ],
    head: Annotated[
        str,
        typer.Option(help="fc1, fc2 …, a width (1024), fc1[:512]: first columns, or pooled."),
    ] = "fc1",
    field: Annotated[
        str | None,
        typer.Option(
            help="The field that holds the text (default: text). Standard input is then JSON lines."
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="As the head gives them, not at length 1.")] = (
        False
    ),
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    prompt: Annotated[
        str | None, typer.Option(help="Put before every text in the place of the student's own.")
    ] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Parquet: a column with the texts.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts computed together.")] = 64,
) -> None:
    """Write the vectors of texts, row by row in their order.

    A .npy file holds an array, texts by width, which `numpy.load(…, mmap_mode="r")` opens without
    reading it; Parquet has the line of each text beside its vector. All texts are looked at before
    the first is computed. The file appears when it is whole.

    Example: `jasper-student encode runs/a questions.jsonl --out questions.npy --head fc2`
    """
    from cli.recipe import RecipeError
    from data.lines import FIELD, texts_of
    from student.trained import find
    from student.vector_files import refuse, write_vectors

    if dtype not in ("float32", "float16"):
        raise RecipeError(f"--dtype is float32 or float16, found {dtype!r}")
    if with_text and out.suffix != ".parquet":
        raise RecipeError(f"--with-text goes with a .parquet file, found {out}")
    refuse(out)
    chosen = find(trained).heads.choose(head)
    with _file(texts, field) as (path, name):
        count = sum(1 for _ in texts_of(path, field or FIELD, name))
        if not count:
            raise RecipeError(f"{name} holds no text")
        from student.embedder import load

        quiet_libraries()
        embedder = load(trained)
        with phase("encoding", count) as advance:
            write_vectors(
                out,
                texts_of(path, field or FIELD, name),
                lambda chunk: embedder.encode(
                    chunk,
                    head=chosen,
                    normalize=not raw,
                    batch_size=batch_size,
                    prompt=prompt,
                    advance=advance,
                ),
                count=count,
                width=embedder.width(chosen),
                dtype=dtype,
                with_text=with_text,
            )
    typer.echo(
        f"{out}: {count:,} x {embedder.width(chosen):,} {dtype}, {size(out.stat().st_size)}, "
        f"{chosen}, {'raw' if raw else 'at length 1'}"
    )


@contextmanager
def _file(texts: str, field: str | None) -> Iterator[tuple[Path, str]]:
    """A file with the texts, and its name for people: standard input can be read only once."""
    if texts != STANDARD_INPUT:
        yield Path(texts), texts
        return
    with tempfile.NamedTemporaryFile(suffix=".txt" if field is None else ".jsonl") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name), "standard input"
