"""What is tried beside the default recipe is that recipe but for what it names."""

from __future__ import annotations

from yardstick.arms import ARMS, VARIANTS, facts_of, recipe_of


def test_each_variant_is_the_default_with_something_else() -> None:
    layers = (0, 1, 5)
    default = facts_of(ARMS["default"], layers)
    for name, variant in VARIANTS.items():
        found = facts_of(variant, layers)
        changed = {
            (number, field)
            for number, stage in found["stages"].items()
            for field, value in stage.items()
            if value != default["stages"][number][field]
        }
        if found["student"] != default["student"]:
            changed.add(("student", "layers"))
        assert changed, name
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
    default = recipe_of(ARMS["default"], (0, 1, 5))
    assert [book.stage(n) for n in (1, 2)] == [default.stage(n) for n in (1, 2)]
    assert recipe_of(VARIANTS["layers 0, 4, 5"], (0, 1, 5)).student.layers == (0, 4, 5)
