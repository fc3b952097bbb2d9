"""Teachers as people name them: in full, or by a beginning that only one of them has."""

from __future__ import annotations

from collections.abc import Sequence


def pick(text: str, known: Sequence[str], owner: str) -> list[str]:
    """The names that a comma-separated option means, in the order given; `stella` is enough.

    `owner` says in errors whose teachers `known` are.

    Raises:
        RecipeError: a name that fits none of them, or a beginning that fits several.
    """
    return [_one(name.strip(), known, owner) for name in text.split(",")]


def _one(name: str, known: Sequence[str], owner: str) -> str:
    from cli.recipe import RecipeError

    begun = [full for full in known if name and full.startswith(name)]
    fitting = [name] if name in known else begun
    if len(fitting) > 1:
        raise RecipeError(f"{owner}: {name!r} may be {' or '.join(fitting)}; give more of the name")
    if not fitting:
        raise RecipeError(f"{owner} has no teacher {name!r}; it has {', '.join(known)}")
    return fitting[0]
