"""The arms: what is compared, and what decides what each gives.

All have the same texts, the same teacher, the same layers to begin from and the same CPU time, each
its own learning rate.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cli.recipe import Recipe, load
from student.run import versions
from student.spec import StudentSpec
from student.stages import StageSpec

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

WIDTHS = {"fc1": 384, "fc2": 128, "fc3": 64}
"""The vectors that every arm gives, whole, a third and a sixth of the teacher's width."""

PCA_ROWS = 20_000
"""Rows for the principal components: as many as sentence-transformers' own example takes."""

EXAMPLE_RATE, EXAMPLE_BATCH = 1e-4, 64
"""Learning rate and batch in sentence-transformers' example."""

MEASURING = ("work", "stopwatch", "measure", "scores", "shortlist")
"""The files, beside an arm's own, that decide what is found about it."""


def bf16() -> bool:
    """Whether every arm multiplies in bf16: where this CPU has it, all are the faster for it."""
    import torch

    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to distil. It has a `recipe` for our trainer, or a `loss` for theirs, or neither.

    The reduced vectors are the recipe's own heads where it has them; else they are the full ones
    along the principal components of the teacher's training vectors.
    """

    name: str
    what: str
    recipe: Path | None = None
    loss: Literal["MSELoss", "EmbedDistillLoss"] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the recipe, by `student` and `stages`."""

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.recipe is not None or self.loss is not None


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("untrained", "the layers that are kept, as they are; PCA for narrower vectors"),
        Arm(
            "mse",
            "sentence-transformers' distillation recipe: its trainer, MSELoss on precomputed "
            "vectors; PCA for narrower ones",
            loss="MSELoss",
        ),
        Arm(
            "embed-distill",
            "the same with its EmbedDistillLoss (cosine)",
            loss="EmbedDistillLoss",
        ),
        Arm("paper", "recipes/paper.toml", recipe=ROOT / "recipes" / "paper.toml"),
        Arm(
            "cosine",
            "our trainer, one stage, cosine on FC1 alone; PCA for narrower vectors",
            recipe=HERE / "cosine.toml",
        ),
        Arm("default", "recipes/default.toml", recipe=ROOT / "recipes" / "default.toml"),
    )
}

VARIANTS: Mapping[str, Arm] = {
    found["name"]: Arm(
        found["name"],
        "recipes/default.toml with one thing changed",
        recipe=ARMS["default"].recipe,
        changes=found["change"],
    )
    for found in tomllib.loads((HERE / "variants.toml").read_text(encoding="utf-8"))["variants"]
}
"""What was tried beside the default."""


def recipe_of(arm: Arm, layers: tuple[int, ...]) -> Recipe:
    """An arm's recipe for a student of these layers; its stages are those that it names.

    A variant that says which layers the student keeps has those.
    """
    assert arm.recipe is not None
    book, _ = load(arm.recipe)
    student = {"layers": layers, **arm.changes.get("student", {})}
    stages = {number: {**fields} for number, fields in book.stages.items()}
    for number, fields in arm.changes.get("stages", {}).items():
        old = stages[int(number)]
        heads = {
            head: {**old["heads"].get(head, {}), **weights}
            for head, weights in fields.get("heads", {}).items()
        }
        stages[int(number)] = {**old, **fields, "heads": {**old["heads"], **heads}}
    values = {**book.student.model_dump(), **student}
    return book.model_copy(update={"student": StudentSpec.model_validate(values), "stages": stages})


def _stages_of(book: Recipe) -> dict[str, StageSpec]:
    return {str(number): book.stage(number) for number in sorted(book.stages)}


def lengths_of(arm: Arm, layers: tuple[int, ...]) -> dict[str, int]:
    """The steps of an arm's stages, of which a budget keeps the proportions."""
    if arm.recipe is None:
        return {"train": 1}
    stages = _stages_of(recipe_of(arm, layers))
    return {number: stage.steps for number, stage in stages.items()}


def batches_of(arm: Arm, layers: tuple[int, ...]) -> dict[str, int]:
    """The texts in a step of an arm's stages."""
    if arm.recipe is None:
        return {"train": EXAMPLE_BATCH}
    stages = _stages_of(recipe_of(arm, layers))
    return {number: stage.batch_size for number, stage in stages.items()}


def arm_of(name: str) -> Arm:
    """An arm or a variant by its name."""
    return ARMS[name] if name in ARMS else VARIANTS[name]


def own_rate(arm: str, layers: tuple[int, ...]) -> float:
    """The learning rate that an arm's recipe has, or the example of its library."""
    if arm_of(arm).recipe is None:
        return EXAMPLE_RATE
    stages = _stages_of(recipe_of(arm_of(arm), layers))
    return max(stage.learning_rate for stage in stages.values())


@cache
def facts_of(arm: Arm, layers: tuple[int, ...]) -> dict[str, Any]:
    """What decides what an arm gives, besides its material, steps, rate and seed."""
    own = "ours" if arm.recipe else "theirs"
    code = [HERE / f"{name}.py" for name in (own, *MEASURING)]
    code += [ROOT / "student" / "encoding.py", ROOT / "student" / "evaluation" / "retention.py"]
    facts: dict[str, Any] = {
        "layers": list(layers),
        "widths": WIDTHS,
        "pca_rows": PCA_ROWS,
        "versions": versions_used(),
        "bf16": bf16(),
    }
    if arm.recipe is None:
        return {**facts, "loss": arm.loss, "code": code_digest(code)}
    book = recipe_of(arm, layers)
    return {
        **facts,
        "student": book.student.model_dump(mode="json"),
        "stages": {number: stage.outcome() for number, stage in _stages_of(book).items()},
        "code": code_digest({*code, *(ROOT / "student").glob("*.py")}),
    }


@cache
def versions_used() -> dict[str, str]:
    """The versions that decide the numbers, the other library's too."""
    from importlib.metadata import version

    return {**versions(), "sentence-transformers": version("sentence-transformers")}


def code_digest(files: Iterable[Path]) -> str:
    """What these files do: their code without comments, docstrings and layout."""
    trees = []
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                body[:] = [statement for statement in body if not _is_text(statement)]
        trees.append([path.name, ast.dump(tree)])
    return digest(trees)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def digest(facts: Any) -> str:
    """A short name of plain data."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
