"""`jasper-student report` on a run that was really trained, and on what is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, command_of
from reports import evaluation, write_sweep
from small_caches import write_cache
from stage_runs import trained

from cli.student import app
from student.report.collect import read_curves, read_run
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def made(cache: Path, small_encoder: Path) -> Path:
    """A run with its third stage, looked at every second step."""
    run = cache.parent / "runs" / "tiny"
    trained(CacheReader(cache), small_encoder, run, 3, probe_every=2, probe_rows=20)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(app, "jasper-student", monkeypatch, capsys)


def test_a_run_becomes_a_page_that_is_the_same_every_time(
    run: Path, tmp_path: Path, student: Command
) -> None:
    (run / "stage-3" / "evaluation.json").write_text(json.dumps(evaluation()))
    found = student("report", run, "--out", tmp_path / "a.html", "--json", tmp_path / "a.json",
                    "--png", tmp_path / "plots")  # fmt: skip
    assert found.code == 0, found.err
    assert "a.html" in found.out
    assert "encoding held-out texts: tiny: 80/80" in found.err
    assert student("report", run, "--out", tmp_path / "b.html").code == 0
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    shown = ("Spearman against width", "Similarity loss", "Neighbours side by side", "in common")
    for told in (*shown, "the old sailor", "Peak memory", "left", "fitted:tfidf-svd"):
        assert told in page, told
    plots = sorted(path.stem for path in (tmp_path / "plots").iterdir())
    assert {"retention-spearman", "pairs-0-0", "stage-3-probe-order", "cost-data-wait"} <= {*plots}
    assert all(
        (tmp_path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in plots
    )
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["runs"][0]["stages"][0]["evaluation"]["rows"] == 48
    assert told["looks"][0]["rows"] == 40
    vectors = [(each["teacher"], each["vector"]) for each in told["looks"][0]["densities"]]
    assert vectors == [("all teachers", "init"), ("all teachers", "fc1"), ("left", "fc1"),
                       ("right", "fc1")]  # fmt: skip
    log = (run / "stage-3" / "metrics.jsonl").read_text()
    logged = [json.loads(line) for line in log.splitlines()]
    curve = told["runs"][0]["stages"][0]["curves"]["probe.fc2.order"]
    assert curve["steps"] == [line["step"] for line in logged] == [2, 4]
    assert curve["values"] == [line["probe.fc2.order"] for line in logged]


def test_what_was_not_measured_is_left_out_with_the_command_that_measures_it(
    run: Path, tmp_path: Path, student: Command
) -> None:
    assert student("report", run, "--rows", 0, "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert f"jasper-student evaluate {run}" in page
    assert "Neighbours" not in page


def test_without_its_cache_a_run_still_becomes_a_page_that_says_so(
    run: Path, tmp_path: Path, student: Command
) -> None:
    file = run / "stage-3" / "run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "cache_path": str(tmp_path / "gone")}))
    found = student("report", run, "--out", tmp_path / "page.html")
    assert found.code == 0
    assert "without pairs and neighbours of tiny" in found.err
    assert "could not be looked at" in (tmp_path / "page.html").read_text()
    named = student("report", run, "--out", tmp_path / "page.html", "--cache", tmp_path / "gone")
    assert (named.code, named.err.count("\n")) == (2, 1)
    assert str(tmp_path / "gone") in named.err


def test_another_cache_than_the_run_s_is_refused(
    run: Path, tmp_path: Path, student: Command
) -> None:
    other = write_cache(tmp_path / "other", texts=60, seed=1)
    found = student("report", run, "--out", tmp_path / "page.html", "--cache", other)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "give the one it was trained from as --cache" in found.err


def test_a_stage_that_goes_on_is_shown_as_unfinished(
    run: Path, tmp_path: Path, student: Command
) -> None:
    going = run / "stage-4"
    going.mkdir()
    line = json.dumps({"step": 10, "loss": 1.5, "fc1.cosine": float("nan"), "learning_rate": 1e-3})
    (going / "metrics.jsonl").write_text(f'{line}\n{{"step": 20, "loss": 1.')
    (run / "stage-5").mkdir()
    found = read_run(run)
    assert [(stage.number, stage.finished) for stage in found.stages] == [(3, True), (4, False)]
    assert found.last.number == 3
    curves = read_curves(going / "metrics.jsonl")
    assert curves["loss"].model_dump() == {"steps": [10], "values": [1.5]}
    assert set(curves) == {"loss", "learning_rate"}
    assert student("report", run, "--rows", 0, "--out", tmp_path / "page.html").code == 0
    assert "is not finished" in (tmp_path / "page.html").read_text()


def test_a_sweep_alone_becomes_a_page(tmp_path: Path, student: Command) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    assert student("report", sweep, "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Ablation: losses" in page
    assert "How training went" not in page


def test_a_run_behind_a_link_goes_by_the_name_of_the_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-0").symlink_to(run)
    assert read_run(tmp_path / "seed-0").name == "seed-0"


def test_runs_of_one_name_go_by_their_paths(run: Path, tmp_path: Path, student: Command) -> None:
    twin = Path(shutil.copytree(run, tmp_path / "twin" / "tiny"))
    out = tmp_path / "page.html"
    assert student("report", run, twin, "--rows", 0, "--out", out).code == 0
    page = out.read_text()
    assert str(run) in page
    assert str(twin) in page


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: shutil.rmtree(run / "stage-3" / "model"), "no finished stage"),
        (lambda run: shutil.rmtree(run / "stage-3"), "neither a run's stages nor results.json"),
        (lambda run: (run / "stage-3" / "evaluation.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "stage-3" / "evaluation.json").write_text('{"rows": "many"}'),
         "rows: Input should be a valid integer"),
        (lambda run: (run / "stage-3" / "run.json").write_text("[]"), "no record of a stage"),
        (lambda run: (run / "results.json").write_text('{"arms": []}'), "holds no arms"),
        (lambda run: (run / "results.json").write_text('{"arms": [{"arm": 3}]}'), "arms.0.arm"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_or_a_broken_one_is_refused_in_one_line(
    run: Path, tmp_path: Path, student: Command, break_it: object, words: str
) -> None:
    break_it(run)  # type: ignore[operator]
    found = student("report", run, "--out", tmp_path / "page.html")
    assert (found.code, found.err.count("\n")) == (2, 1), found.err
    assert words in found.err
    assert not (tmp_path / "page.html").exists()


def test_options_that_cannot_be_followed_are_refused_in_one_line(
    run: Path, tmp_path: Path, student: Command
) -> None:
    (tmp_path / "file").write_text("")
    page = tmp_path / "page.html"
    for options, words in (
        (["--out", tmp_path], "is a folder"),
        (["--out", tmp_path / "no" / "page.html"], "there is no folder"),
        (["--out", page, "--json", tmp_path], "is a folder"),
        (["--out", page, "--json", page], "are one file"),
        ([run.parent / "." / run.name, "--out", page], "stands twice among the runs"),
        ([tmp_path / "none", "--out", page], "there is no folder"),
        (["--out", page, "--png", tmp_path / "file"], "is a file"),
        (["--out", page, "--rows", 2], "from 3 texts on"),
    ):
        found = student("report", run, *options)
        assert (found.code, found.err.count("\n")) == (2, 1), found.err
        assert words in found.err
    seven = student("report", *[run] * 7, "--out", page)
    assert (seven.code, seven.err.count("\n")) == (2, 1)
    assert "give at most 6" in seven.err
    one_stage = student("report", run / "stage-3", "--out", page)
    assert (one_stage.code, one_stage.err.count("\n")) == (2, 1)
    assert f"jasper-student report {run}" in one_stage.err


def test_a_page_without_a_look_loads_no_torch_and_help_nothing_heavy(
    run: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from cli.student import app\n"
        "app(['report', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'scipy', 'numpy'}\n"
        "print(sorted(heavy & {*sys.modules}))\n"
        f"app(['report', {str(run)!r}, '--rows', '0', '--out', {str(tmp_path / 'page.html')!r}],"
        " standalone_mode=False)\n"
        "print(sorted((heavy - {'numpy'}) & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert loaded == ["[]", "['matplotlib']"]
    assert "Usage" in done.stdout
