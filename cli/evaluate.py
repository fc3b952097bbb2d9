"""`jasper-student evaluate`: what a student keeps of its teachers, what it is worth on tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import default_device, note, phase, print_table, quiet_libraries

if TYPE_CHECKING:
    from student.evaluation.task_spec import Task
    from teacher_cache.format import Block


def evaluate(
    trained: Annotated[
        Path,
        typer.Argument(help="A run (its last stage) or one stage of it.", show_default=False),
    ],
    cache: Annotated[
        Path | None, typer.Option(help="The cache (default: the one it was trained from).")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads by name or width, or first columns of them: fc1,1024,fc1[:512] (default: "
            "all trained, and FC1 cut to the widths of the reduced heads)."
        ),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="A TOML file of tasks: docs/evaluation.md shows one.")
    ] = None,
    sts: Annotated[
        list[Path] | None,
        typer.Option(help="A file with columns sentence1, sentence2, score. May be repeated."),
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with corpus.jsonl, queries.jsonl, qrels/test.tsv (BEIR)."),
    ] = None,
    classification: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with train.csv and test.csv: columns text, label."),
    ] = None,
    teacher_cache: Annotated[
        list[Path] | None,
        typer.Option(help="A cache over the tasks' texts: the teachers' scores. May be repeated."),
    ] = None,
    write_texts: Annotated[
        Path | None,
        typer.Option(help="Write the tasks' texts and the recipe of such a cache here, and end."),
    ] = None,
    mteb: Annotated[
        str | None, typer.Option(help="Tasks of MTEB by name: STS12,STSBenchmark (extra: mteb).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Measure every head against every teacher on held-out rows, and on tasks.

    cosine: mean cosine of a text's vector with the teacher's own; FC1 alone learns to point there,
    against one of several teachers with that teacher's columns. spearman: rank correlation of all
    pairwise similarities with the teacher's. pair_order: share of pairs of text pairs that student
    and teacher put in the same order; 0.5 is chance. recall@1: share of texts whose nearest
    neighbour is the teacher's. recall@10: share of the teacher's ten nearest neighbours that are
    among the student's ten. `init` is the untrained student's pooled state. Figures of tasks come
    with their standard errors.

    Examples:

    `jasper-student evaluate runs/a`

    `jasper-student evaluate runs/a --sts stsb.csv --retrieval scifact/`

    `jasper-student evaluate runs/a --tasks tasks.toml --write-texts texts/`, then
    `jasper-cache build --recipe texts/recipe.toml --out teachers/`, then
    `jasper-student evaluate runs/a --tasks tasks.toml --teacher-cache teachers/`
    """
    from cli.recipe import RecipeError
    from student.evaluation import heads as vectors
    from student.run import EVALUATION_FILE, last_stage, read_record, reader_of
    from student.stages import LEAST_TEXTS

    folder = last_stage(trained)
    record = read_record(folder)
    reader = reader_of(folder, record, cache)
    blocks = reader.blocks(record["teachers"])
    widths = {"fc1": sum(b.width for b in blocks), **record["student"]["reduced_heads"]}
    entries = vectors.to_measure(record["trained_heads"], widths)
    if heads is not None:
        entries = vectors.asked(heads, record["trained_heads"], widths)
    found = _read(tasks, sts or [], retrieval or [], classification or [])
    if (write_texts or teacher_cache) and not found:
        raise RecipeError(
            "--write-texts and --teacher-cache go with tasks: --tasks, --sts, --retrieval or "
            "--classification"
        )
    if write_texts is not None:
        _write(write_texts, found, blocks, reader.path)
        return
    if len(reader.held_out_rows) < LEAST_TEXTS:
        if not found and not mteb:
            raise RecipeError(
                f"{reader.path} has no held-out rows: set corpus.held_out in its recipe, or give "
                "tasks"
            )
        note(f"{reader.path} has no held-out rows: the tasks alone are measured")
    if not Path(record["init_path"]).is_dir():
        note(f"{record['init_path']} is gone: nothing is told of the untrained student")
    from student.evaluation.teacher_vectors import TeacherVectors

    teachers = TeacherVectors(teacher_cache, blocks, found) if teacher_cache else None
    named = _of_mteb(mteb)
    from student.evaluation.stage import Asked
    from student.evaluation.stage import evaluate as measure

    quiet_libraries()
    asked = Asked(
        folder, record, reader, entries, found, teachers, named, entries if heads else entries[:1]
    )
    result = measure(asked, device=default_device(), phase=phase)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    show(result)
    typer.echo(f"the same as JSON: {folder / EVALUATION_FILE}")


def show(result: dict[str, Any]) -> None:
    """Print an evaluation as tables, one for each part that it has."""
    if "retention" in result:
        print_table(
            f"Stage {result['stage']} on {result['rows']:,} held-out texts",
            ("vector", "width", "teacher", "cosine", "spearman", "pair order", "recall@1",
             "recall@10"),
            [
                (name, str(result["widths"][name]), teacher, *map(_figure, figures.values()))
                for name, teachers in result["retention"].items()
                for teacher, figures in teachers.items()
            ],
        )  # fmt: skip
    if result.get("asymmetric"):
        print_table(
            "The student's queries in the teachers' index",
            ("vector", "teacher", "recall@1", "recall@10"),
            [
                (name, teacher, *map(_figure, figures.values()))
                for name, teachers in result["asymmetric"].items()
                for teacher, figures in teachers.items()
            ],
        )
    for rows in _by_task(result.get("tasks", [])):
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        cells: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            cells.setdefault((row["vector"], _whose(row)), []).extend(_score(row))
        print_table(
            f"{rows[0]['task']} ({rows[0]['kind']}){_behind(rows[0]['instruction'])}",
            ("vector", "of", *(name for m in measures for name in (m, "± s.e.", "of teacher's"))),
            [(*of, *figures) for of, figures in cells.items()],
        )
    if result.get("instructions"):
        print_table(
            "Under every wording of the instruction",
            ("task", "measure", "vector", "of", "wordings", "mean", "sd", "min", "max"),
            [
                (
                    row["task"], row["measure"], row["vector"], _whose(row),
                    str(row["instructions"]),
                    *(_figure(row[name]) for name in ("mean", "sd", "min", "max")),
                )
                for row in result["instructions"]
            ],
        )  # fmt: skip


def _by_task(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each task under its own instruction; paraphrases are a table of their own."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        own = tasks.setdefault(row["task"], [])
        if not own or row["of"] != "student" or row["instruction"] == own[0]["instruction"]:
            own.append(row)
    return list(tasks.values())


def _score(row: dict[str, Any]) -> tuple[str, str, str]:
    share = "-" if row["share"] is None else f"{row['share']:.1%}"
    return _figure(row["score"]), _figure(row["standard_error"]), share


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _whose(row: dict[str, Any]) -> str:
    return f"student in {row['documents_of']}" if row["asymmetric"] else str(row["of"])


def _behind(instruction: str) -> str:
    line = " ".join(instruction.split())
    return f', behind "{line if len(line) <= 60 else line[:59] + "…"}"' if line else ""


def _read(
    tasks: Path | None,
    sts: Sequence[Path],
    retrieval: Sequence[Path],
    classification: Sequence[Path],
) -> list[Task]:
    from student.evaluation.tasks import check_names, named_by, read

    found = [] if tasks is None else read(tasks)
    found += [named_by("sts", path) for path in sts]
    found += [named_by("retrieval", path) for path in retrieval]
    found += [named_by("classification", path) for path in classification]
    check_names(found)
    return found


def _write(folder: Path, tasks: Sequence[Task], blocks: Sequence[Block], cache: Path) -> None:
    from student.evaluation.task_texts import write

    recipe = write(folder, tasks, blocks, cache)
    typer.echo(
        f"{folder}: the tasks' texts. Encode them with the teachers:\n\n"
        f"    jasper-cache build --recipe {recipe} --out CACHE\n\n"
        "and give CACHE to the same command as --teacher-cache, without --write-texts"
    )


def _of_mteb(names: str | None) -> Sequence[Any]:
    if names is None:
        return ()
    from student.evaluation.mteb_model import fetch, find

    found = find([name.strip() for name in names.split(",")])
    note(f"fetching the data of {names}, where it is not here")
    fetch(found)
    return found
