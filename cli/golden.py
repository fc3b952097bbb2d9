"""`jasper-cache golden`: the reference vectors of a teacher, taken once and held to ever after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from cli.console import default_device, print_error, print_table, quiet_libraries

if TYPE_CHECKING:
    from teacher_cache.golden import Agreement
    from teacher_cache.teachers import Teacher

_ROWS = 12


def golden(
    teacher: Annotated[
        str | None, typer.Option(help="The teacher: a row of the table, or the recipe's.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Write the 64 texts here, for the original code to encode.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write this teacher's vectors here, as it is loaded now.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Hold this teacher against the vectors of this file.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take the teacher as this recipe has it.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Folder of its model, instead of the table's or recipe's.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 … (default: a GPU if there is one).")
    ] = None,
) -> None:
    """Take a teacher's reference vectors, or compare it with those taken before.

    Best taken from the model's original code, in an environment of its own: `--texts` writes the
    inputs, docs/golden-vectors.md has the lines that add the vectors. `--check` exits 1 where a
    cosine is under 0.9995; `jasper-cache build --golden FILE` then writes no shard.

    Example: `jasper-cache golden --teacher nv-embed-v2 --check nv-embed-v2.golden.safetensors`
    """
    from cli.recipe import RecipeError

    if [texts, write, check].count(None) != 2:
        raise RecipeError("give one of --texts FILE, --write FILE and --check FILE")
    from teacher_cache.golden import check_golden, write_golden, write_texts

    if texts:
        write_texts(texts)
        typer.echo(f"{texts}: 64 texts; docs/golden-vectors.md has the lines that add the vectors")
        return
    row, base = _teacher(teacher, recipe, path, dtype)
    quiet_libraries()
    device = device or default_device()
    if write:
        write_golden(write, row, base=base, device=device)
        typer.echo(f"{write}: vectors of {row.name} in {row.dtype} for 64 texts")
    elif check:
        agreement = check_golden(check, row, base=base, device=device)
        _print(agreement, row)
        if agreement.failure:
            print_error(agreement.failure)
            raise typer.Exit(1)


def _teacher(
    name: str | None, recipe: Path | None, path: str | None, dtype: str | None
) -> tuple[Teacher, Path]:
    """The teacher that is meant, and the folder that its relative path is seen from."""
    from cli.recipe import RecipeError, load
    from teacher_cache.teachers import Dtype, TeacherSpec, resolve

    if name is None:
        raise RecipeError("give --teacher NAME: whose vectors are they?")
    if dtype not in (None, *get_args(Dtype)):
        raise RecipeError(f"--dtype is one of {', '.join(get_args(Dtype))}, found {dtype!r}")
    book, base = load(recipe)
    specs = {spec.name: spec for spec in book.teachers}
    if recipe is not None and name not in specs:
        raise RecipeError(f"{recipe} has no teacher {name!r}; it has {', '.join(specs)}")
    changes = {"path": path, "dtype": dtype}
    given = {field: value for field, value in changes.items() if value is not None}
    spec = specs.get(name, TeacherSpec(name=name)).model_copy(update=given)
    return resolve(spec), Path() if path is not None else base


def _print(agreement: Agreement, teacher: Teacher) -> None:
    from teacher_cache.golden import MIN_COSINE, shown

    golden = agreement.golden
    typer.echo(
        f"{teacher.name} in {teacher.dtype} against {golden.path}: the lowest of "
        f"{len(golden.texts)} cosines, each at least {MIN_COSINE} where they agree"
    )
    print_table(
        "",
        ("text", "behind", "tokens", "1 - cosine", "cosine"),
        [
            (
                f"{row} {shown(golden.texts[row])}",
                "a prompt" if golden.texts[row].prompt else "-",
                str(agreement.tokens[row]),
                f"{1 - agreement.cosines[row]:.1e}",
                f"{agreement.cosines[row]:.6f}",
            )
            for row in agreement.worst[:_ROWS]
        ],
    )
    for name, note in sorted(golden.notes.items()):
        typer.echo(f"{name}: {note}")
