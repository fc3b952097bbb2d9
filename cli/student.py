"""`jasper-student`: measure a trained student and hand it on."""

from __future__ import annotations

import typer

from cli.console import run
from cli.encode import encode
from cli.evaluate import evaluate
from cli.export_model import export
from cli.recall import recall
from cli.report import report

app = typer.Typer(
    help="What a trained student keeps of its teachers, and how it leaves.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (evaluate, recall, report, export, encode):
    app.command()(command)


def main() -> None:
    """Entry point of `jasper-student`."""
    run(app)


if __name__ == "__main__":
    main()
