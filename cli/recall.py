"""`jasper-student recall`: how well a student finds captions by images, and images by captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.console import bar, default_device, print_table, quiet_libraries


def recall(
    trained: Annotated[
        Path, typer.Argument(help="A run (its last stage) or its stage 4.", show_default=False)
    ],
    recipe: Annotated[
        Path,
        typer.Option(help="The recipe, whose [images] has held-out pairs.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Measure recall@1, 5 and 10 on held-out pairs, for every head and both directions.

    Example: `jasper-student recall runs/a --recipe recipes/demo.toml`
    """
    from cli.recipe import RecipeError, load
    from data.pairs import Pairs
    from student.durable import replace_text
    from student.run import RECALL_FILE, last_stage, read_record

    book, base = load(recipe)
    folder = last_stage(trained)
    record = read_record(folder)
    if "images" not in record:
        raise RecipeError(f"{folder} was not trained on images; give a run with its stage 4")
    if book.images is None:
        raise RecipeError(f"{recipe} has no [images]")
    pairs = Pairs(book.images, base)
    if pairs.identity != record["images"]:
        raise RecipeError(
            f"{folder} was trained from other pairs ({record['images']}) than {recipe} names "
            f"({pairs.identity}): held-out ones may be among what it has seen"
        )
    if len(pairs.held_out) < 2:
        raise RecipeError(f"{recipe} holds out {len(pairs.held_out)} pairs: set images.held_out")
    from student.evaluation.images import AT, measure
    from student.model import load as load_student

    quiet_libraries()
    student = load_student(folder / "model").to(default_device())
    rows = pairs.held_out
    both = len(rows) + len(set(pairs.captions(rows.tolist())))
    with bar("encoding held-out pairs", both, "images and captions") as update:
        result = measure(
            student, pairs, rows, record["trained_heads"], advance=lambda count: update(count, "")
        )
    replace_text(folder / RECALL_FILE, json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    print_table(
        f"Stage {record['number']} on {result['pairs']:,} held-out pairs, "
        f"{result['captions']:,} captions",
        ("vector", "direction", *(f"recall@{at}" for at in AT)),
        [
            (name, direction, *(f"{value:.1%}" for value in values))
            for name, directions in result["recall"].items()
            for direction, values in directions.items()
        ],
    )
    typer.echo(
        f"by chance recall@1 would be {1 / result['captions']:.1%}; the same as JSON: "
        f"{folder / RECALL_FILE}"
    )
