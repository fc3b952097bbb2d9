"""Progress where standard error is no terminal."""

import pytest

from cli import console


def test_the_time_left_counts_from_the_first_item_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.bar("planning", 100) as update:
        now += 500  # a long wait before the first says nothing about the others
        update(1, "")
        now += 40
        update(20, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "planning: 1/100 (1%), 0.0 texts/s, 500 s"
    assert lines[2] == "planning: 21/100 (21%), 0.0 texts/s, 540 s, 158 s left"
