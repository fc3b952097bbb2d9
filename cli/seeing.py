"""What a recipe says about images, made into what a stage that reads them needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import note
from cli.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from student.seeing import Seeing
    from student.stages import StageSpec


def seeing_of(book: Recipe, base: Path, spec: StageSpec, captions: Path | None) -> Seeing | None:
    """The pairs, the vision model's folder and the caption cache; None for a stage of texts.

    Raises:
        RecipeError: the recipe lacks what the stage needs, or --captions is of no use to it.
        CorpusError: the pairs cannot be read.
        ModelError: the vision model cannot be found.
    """
    if spec.reads != "images":
        if captions is not None:
            raise RecipeError("--captions goes with a stage that reads images, such as stage 4")
        return None
    if book.images is None:
        raise RecipeError(
            "the stage reads images: say in the recipe where they are, under [images], "
            'for instance path = "pictures/captions.jsonl"'
        )
    vision = book.student.vision
    if vision is None:
        raise RecipeError(
            "the stage reads images: give the student an image side in the recipe, "
            'under [student.vision], for instance init = "google/siglip-so400m-patch14-384"'
        )
    from data.pairs import Pairs
    from teacher_cache.models import locate
    from teacher_cache.reader import CacheReader

    reader = None if captions is None else CacheReader(captions)
    name, revision = book.student.init, book.student.revision
    if vision.init is not None:
        name, revision = vision.init, vision.revision
    folder = None
    if vision.fresh is None:
        folder, _ = locate(name, revision, what="the student's vision model", base=base)
    pairs = Pairs(book.images, base)
    if pairs.skipped.rows:
        note(f"images: {pairs.skipped.rows:,} rows are no pairs; the first: {pairs.skipped.first}")
    from student.seeing import Seeing

    return Seeing(pairs, folder, reader)
