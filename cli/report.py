"""`jasper-student report`: runs and sweeps as one page that opens anywhere, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import bar, default_device, note, phase, quiet_libraries, size

if TYPE_CHECKING:
    from student.report.records import Report

ROWS = 1000


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Runs, sweeps, or both; several runs are compared.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    cache: Annotated[
        Path | None, typer.Option(help="The cache (default: the one each run was trained from).")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Held-out texts to encode, for pairs and neighbours; 0: no model is loaded.",
        ),
    ] = ROWS,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write all that it tells into this file.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write its plots as PNG into this folder.")
    ] = None,
) -> None:
    """Tell what runs came to, as one self-contained HTML page.

    It has loss curves, what was kept against width, pairs of texts as teachers and student see
    them, neighbours side by side, what it cost, and what ran. A sweep's folder adds its ablation
    table with error bars. What was not measured yet is left out, with the command that measures it.

    Example: `jasper-student report runs/a --out report.html`

    Example: `jasper-student report runs/a runs/b sweeps/losses --png plots/`
    """  # fmt: skip
    from student.report.collect import collect
    from student.spec import StudentError

    for option, path in (("--out", out), ("--json", as_json)):
        if path is not None and path.is_dir():
            raise StudentError(f"{option} {path} is a folder; give the name of a file in it")
        if path is not None and not path.parent.is_dir():
            raise StudentError(f"{option} {path}: there is no folder {path.parent}")
    if as_json is not None and as_json.resolve() == out.resolve():
        raise StudentError(f"--out and --json are one file, {out}; give two names")
    if png is not None and png.exists() and not png.is_dir():
        raise StudentError(f"--png {png} is a file; give a folder")
    if 0 < rows < 3:
        raise StudentError(f"--rows {rows}: two pairs can be compared from 3 texts on; 0 for none")
    found = collect(folders)
    if rows:
        found = _looked(found, cache, rows)
    from student.durable import replace_text
    from student.report.page import draw, plots_of, render, sections

    parts = sections(found)
    page = render(found, parts)
    try:
        replace_text(out, page)
        if as_json is not None:
            replace_text(as_json, found.model_dump_json(indent=1) + "\n")
        if png is not None:
            with bar("drawing", len(plots_of(parts)), "plots") as update:
                draw(parts, png, lambda count: update(count, ""))
    except OSError as error:
        raise StudentError(f"{error.filename} cannot be written: {error.strerror}") from None
    typer.echo(f"{out}: {size(len(page.encode()))}; open it in any browser, no network needed")


def _looked(found: Report, cache: Path | None, rows: int) -> Report:
    """The same with each run's own vectors of held-out texts looked at.

    A cache that is no longer where it was is no failure: the page says so. One that was named is.
    """
    from student.report.collect import cache_to_look_at
    from student.report.records import Look
    from student.spec import StudentError
    from teacher_cache.format import CacheError
    from teacher_cache.reader import CacheReader

    readers: list[CacheReader | str] = []
    for run in found.runs:
        try:
            readers.append(cache_to_look_at(run, cache))
        except (CacheError, StudentError) as error:
            if cache is not None:
                raise
            note(f"without pairs and neighbours of {run.name}: {error}")
            readers.append(str(error))
    looks = []
    for run, reader in zip(found.runs, readers, strict=True):
        if isinstance(reader, str):
            looks.append(Look(run=run.name, missing=reader))
            continue
        from student.report.look import look

        quiet_libraries()
        looks.append(look(run, reader, rows, phase, device=default_device()))
    return found.model_copy(update={"looks": looks})
