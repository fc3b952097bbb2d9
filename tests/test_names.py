"""Teachers by a part of their names."""

import pytest

from cli.names import pick
from cli.recipe import RecipeError

KNOWN = ["stella-en-1.5b-v5", "nv-embed-v2", "nv-embed-v1", "nv-embed"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("stella", ["stella-en-1.5b-v5"]),
        ("nv-embed-v2, stella", ["nv-embed-v2", "stella-en-1.5b-v5"]),
        ("nv-embed", ["nv-embed"]),
    ],
)
def test_full_name_or_a_beginning_of_only_one_is_enough(text: str, names: list[str]) -> None:
    assert pick(text, KNOWN, "recipe.toml") == names


def test_name_that_fits_none_or_several_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"^r: 'nv-embed-v' may be nv-embed-v2 or nv-embed-v1"):
        pick("nv-embed-v", KNOWN, "r")
    for wrong in ("", "stella,", "bert"):
        with pytest.raises(RecipeError, match=r"^r has no teacher '(bert)?'; it has stella-en"):
            pick(wrong, KNOWN, "r")
