"""What is tried beside the default recipe is that recipe but for what it names."""

from __future__ import annotations

from dataclasses import replace

from yardstick.arms import ARMS, VARIANTS, facts_of, recipe_of


def test_each_variant_is_the_default_with_something_else() -> None:
    layers = (0, 1, 5)
    for name, variant in VARIANTS.items():
        default = facts_of(replace(variant, changes={}), layers)
        found = facts_of(variant, layers)
        changed = {
            (number, field)
            for number, stage in found["stages"].items()
            for field, value in stage.items()
            if value != default["stages"][number][field]
        }
        if found["student"] != default["student"]:
            changed.add(("student", "layers"))
        assert changed or variant.recipe != ARMS["default"].recipe, name
        named = {
            *(("student", field) for field in variant.changes.get("student", {})),
            *(
                (number, field)
                for number, fields in variant.changes.get("stages", {}).items()
                for field in fields
            ),
        }
        assert changed <= named, name


def test_a_variant_keeps_what_it_does_not_name() -> None:
    book = recipe_of(VARIANTS["heads fitted without a focus"], (0, 1, 5))
    fc2 = book.stage(3).heads["fc2"]
    assert (fc2.similarity, fc2.focus) == (200, 1e6)
    assert book.stage(2) == recipe_of(ARMS["default"], (0, 1, 5)).stage(2)
    assert recipe_of(VARIANTS["layers 0, 4, 5"], (0, 1, 5)).student.layers == (0, 4, 5)


def test_the_last_tenth_is_the_default_with_a_stage_between() -> None:
    ours = recipe_of(ARMS["default"], (0, 1, 5))
    near = recipe_of(VARIANTS["the last tenth by cosine and the heads' near texts"], (0, 1, 5))
    assert near.student == ours.student
    assert near.stage(3) == ours.stage(3)
    first = ours.stage(2).model_copy(update={"steps": near.stage(1).steps})
    assert near.stage(1) == first
    assert near.stage(1).steps + near.stage(2).steps == ours.stage(2).steps
