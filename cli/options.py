"""Options that several commands have, spelled and checked once."""

from __future__ import annotations

from typing import Annotated

import typer

PRECISIONS = ("auto", "fp32", "bf16")

PrecisionOption = Annotated[
    str, typer.Option(help="auto (bf16 on GPUs that have it), fp32 or bf16.")
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(help="Running Ray cluster, or `auto`; without it Ray starts on this machine."),
]


def check_precision(asked: str) -> None:
    """Refuse another precision than those.

    Raises:
        RecipeError: it is none of them.
    """
    from cli.recipe import RecipeError

    if asked not in PRECISIONS:
        raise RecipeError(f"--precision is auto, fp32 or bf16, found {asked!r}")
