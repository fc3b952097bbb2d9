"""Commands run in this process, by the function that their entry points call."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import typer

from cli.console import run


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Command = Callable[..., Ran]


def command_of(
    app: typer.Typer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """A function that runs the command line `name` with its arguments."""

    def ran(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(app)
        return Ran(end.value.code, *capsys.readouterr())

    return ran
