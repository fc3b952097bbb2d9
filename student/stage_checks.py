"""What is asked of a stage before anything is loaded: can it be run at all? No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from student.stages import FULL_HEAD, FULL_STARTS, LEAST_TEXTS, StageError, StageSpec, width_of


def check(
    spec: StageSpec,
    head_widths: Mapping[str, int],
    target_width: int,
    rows: int,
    teachers: Sequence[str],
) -> None:
    """Refuse, before a model is loaded, a stage that asks the impossible.

    `head_widths` are the student's heads, `rows` the number of rows there are to train on,
    `teachers` all that the cache holds. What needs the model's configuration is refused by
    `student.plan.check_model`, what needs the number of processes by `check_processes`.

    Raises:
        StageError: a head that is not there or not as wide as asked, a cosine loss on a head that
            is not as wide as its target, a head that is to learn from itself, a closed form that
            the head does not have, weights of a teacher that is not there, fewer rows than one
            batch, or a micro batch that does not divide it.
    """
    for head, weights in spec.heads.items():
        width = width_of(head, head_widths)
        compared = [name for name in ("cosine", "contrastive") if getattr(weights, name)]
        if compared and width != target_width and set(weights.target) - {"captions"}:
            raise StageError(
                f"{head} is {width} wide and its target {target_width}: the {compared[0]} "
                "loss compares vectors of one width; give it weight 0 (similarity and relative "
                "losses compare any widths)"
            )
        if ("captions" in weights.target) != (spec.reads == "images"):
            raise StageError(
                f"{head} learns from {' and '.join(weights.target)}: an image's target is "
                '"captions", a text has none'
            )
        if head == FULL_HEAD and FULL_HEAD in weights.target:
            raise StageError('fc1 cannot learn from itself; its target is "teachers"')
    if spec.reads == "images" and (spec.closed_form or set(spec.trains) - {"vision", "pooler"}):
        raise StageError(
            "captions are targets while the text side stays as it is: a stage that reads images "
            "trains vision and pooler alone, and solves no head"
        )
    if spec.reads == "images" and spec.longest is not None:
        raise StageError("longest is a length of texts; this stage reads images")
    for head, way in spec.closed_form.items():
        if head not in head_widths:
            raise StageError(
                f"closed_form names {head!r}; the student has {', '.join(head_widths)}"
            )
        if (way in FULL_STARTS) != (head == FULL_HEAD):
            ways = "ridge, copy or identity" if head == FULL_HEAD else "principal or fitted"
            raise StageError(f"closed_form: {head} can begin as {ways}, not as {way}")
    for teacher in spec.teacher_weights:
        if teacher not in teachers:
            raise StageError(
                f"teacher_weights names {teacher!r}; the cache holds {', '.join(teachers)}"
            )
    if rows < spec.batch_size:
        raise StageError(f"a batch of {spec.batch_size} texts, but only {rows} rows to train on")
    if spec.micro_batch and spec.batch_size % spec.micro_batch:
        raise StageError(
            f"micro_batch is {spec.micro_batch}, which does not divide a batch of {spec.batch_size}"
        )


def check_processes(spec: StageSpec, processes: int) -> None:
    """Refuse a stage that so many processes cannot share.

    Raises:
        StageError: the global batch does not divide among them, a process's share not into micro
            batches, or, without `gather`, a share has too few texts for its losses.
    """
    share, rest = divmod(spec.batch_size, processes)
    if rest:
        raise StageError(
            f"a global batch of {spec.batch_size} does not divide among {processes} processes"
        )
    if spec.micro_batch and share % spec.micro_batch:
        raise StageError(
            f"micro_batch is {spec.micro_batch}, which does not divide the {share} texts of each "
            f"of {processes} processes"
        )
    if not spec.gather and share < LEAST_TEXTS:
        raise StageError(
            f"without gather each of {processes} processes has losses over its own {share} texts; "
            f"they need {LEAST_TEXTS}: give a larger batch"
        )
