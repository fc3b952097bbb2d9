from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cli.recipe import load
from cli.recipe_fields import sections
from student.spec import PAPER_HEADS
from student.stage_checks import check
from student.stage_fields import FIELD_COLUMNS, TABLE_COLUMNS, fields, table
from student.stages import STAGES, stage
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


def test_docs_have_the_fields_of_a_stage_as_the_program_has_them() -> None:
    page = (ROOT / "docs" / "stages.md").read_text()
    rows = [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in fields()]
    lines = ["| " + " | ".join(FIELD_COLUMNS) + " |", "|" + "---|" * len(FIELD_COLUMNS), *rows]
    assert "\n".join(lines) in page


def test_stage_that_the_docs_give_as_an_example_can_run() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "stages.md").read_text(), re.S)
    ((number, changes),) = tomllib.loads(example)["stages"].items()
    widths = {"fc1": 12_288, **PAPER_HEADS}
    teachers = ("stella-en-1.5b-v5", "nv-embed-v2")
    spec = stage(int(number), changes)
    check(spec, widths, target_width=12_288, rows=10_000, teachers=teachers)
    assert list(spec.heads) == ["fc1", "fc2", "fc4", "fc1[:512]"]


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


def test_docs_have_the_fields_of_a_recipe_as_the_program_has_them() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for section in sections():
        rows = [
            f"| `{name}` | {default} | {meaning} |" for name, default, meaning in section.fields
        ]
        lines = [
            f"## {section.head or 'At the top'}",
            "",
            section.meaning,
            "",
            "| " + " | ".join(FIELD_COLUMNS) + " |",
            "|" + "---|" * len(FIELD_COLUMNS),
            *rows,
        ]
        assert "\n".join(lines) in page, section.head


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
