"""On the command line: a full disk, a read-only folder, damage found and mended."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, command_of
from faults import Disk, full_from, read_only_from
from jobs import contents, write_corpus
from shard_files import shard_file
from test_cache_command import RECIPE, assert_refused, build

from cli.cache import app
from teacher_cache.format import plan_path
from teacher_cache.reader import CacheReader


@pytest.fixture(scope="module")
def place(memory_folder: Path) -> Path:
    """A corpus and a recipe of a teacher that is fitted in no time."""
    write_corpus(memory_folder)
    head, *_, fitted = RECIPE.split("[[teachers]]")
    (memory_folder / "recipe.toml").write_text(f"{head}[[teachers]]{fitted}")
    return memory_folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(app, "jasper-cache", monkeypatch, capsys)


@pytest.mark.parametrize("fault", [full_from, read_only_from])
@pytest.mark.parametrize("moment", [0, 30, 100])
def test_disk_that_is_full_or_read_only_is_one_line_and_the_same_command_goes_on(
    fault: object,
    moment: int,
    command: Command,
    place: Path,
) -> None:
    cache = place / "cache"
    number = errno.ENOSPC if fault is full_from else errno.EROFS
    with Disk(cache, fault(moment)).watched():  # type: ignore[operator]
        refused = build(command, place)
    assert_refused(refused, str(cache), "cannot be written", os.strerror(number), "goes on")
    kept = {name for name in contents(cache) if ".tmp" not in name}
    assert build(command, place).code == 0
    assert kept <= set(contents(cache))
    assert command("verify", cache).code == 0
    shutil.rmtree(cache)


_FULL = """
set -e
mount -t tmpfs -o size=$2 none "$1"
"$3" -m cli.cache build --recipe "$4" --out "$1/cache" --device cpu && exit 9
test $? = 2
mount -o remount,size=64m "$1"
"$3" -m cli.cache build --recipe "$4" --out "$1/cache" --device cpu
"""


def test_real_disk_may_be_full(place: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own")
    script = ["unshare", "-rm", "bash", "-c", _FULL, "full", tmp_path, "40k", sys.executable]
    result = subprocess.run(
        [*map(str, script), str(place / "recipe.toml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 0, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot be written: No space left on device" in errors[0]
    assert "Traceback" not in result.stderr
    assert "cache: 40 rows × 8 in 1 shards" in result.stdout


def test_damage_is_found_and_mended_by_the_command(command: Command, place: Path) -> None:
    cache = place / "cache"
    build(command, place)
    whole = contents(cache)
    identity = CacheReader(cache).identity
    damaged = shard_file(cache, 0)
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-100] + b"x" + data[-99:])
    plan_path(cache, 0).with_suffix(".json").write_text("not ours")
    verified = command("verify", cache)
    assert verified.code == 1
    assert f"mend it with: jasper-cache repair {cache}\n" in verified.out
    assert_refused(command("repair", cache), "shard 0", "give the recipe", "--recipe RECIPE")
    ran = command("repair", cache, "--recipe", place / "recipe.toml", "--device", "cpu")
    assert (ran.code, ran.out) == (
        0,
        f"shard 0 was encoded again\n{cache}: whole, identity {identity}\n",
    )
    plan_path(cache, 0).with_suffix(".json").unlink()
    assert contents(cache) == whole
    ran = command("repair", cache)
    assert ran.out == f"{cache}: whole, identity {identity}\n"
    shutil.rmtree(cache)
