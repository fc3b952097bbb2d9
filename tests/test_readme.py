from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.recipe import load
from student.stages import STAGES, TABLE_COLUMNS, table
from teacher_cache.teachers import resolve

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def test_readme_has_the_table_of_stages_as_the_program_has_it() -> None:
    lines = [
        "| " + " | ".join(TABLE_COLUMNS) + " |",
        "|" + "---|" * len(TABLE_COLUMNS),
        *("| " + " | ".join(row) + " |" for row in table()),
    ]
    assert "\n".join(lines) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    recipe, _ = load(path)
    assert recipe.purpose
    assert all(resolve(spec) for spec in recipe.teachers)
    for number in STAGES:
        recipe.stage(number)


def test_every_file_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    named |= set(re.findall(r"`((?:docs|recipes|benchmarks|examples)/[\w./-]+)`", text))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
