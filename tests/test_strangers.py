"""A cache is data: one that a stranger made is read, or refused by name, and does nothing else."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import contents, copy, lsa
from shard_files import shard_file

from teacher_cache.format import (
    CacheError,
    Manifest,
    canonical_json,
    checksum,
    plan_path,
    record_path,
)
from teacher_cache.query import encode
from teacher_cache.reader import CacheReader
from teacher_cache.repair import repair
from teacher_cache.verify import verify

Data = dict[str, Any]


@pytest.fixture
def own(cache: CacheReader, tmp_path: Path) -> Path:
    """A whole cache, for a stranger to change."""
    return copy(cache.path, tmp_path / "own")


def opened_read_and_verified(folder: Path) -> None:
    reader = CacheReader(folder)
    rows = range(len(reader))
    (
        reader.vectors(rows[:60]),
        reader.texts(rows[:60]),
        reader.vectors(rows[:3], reader.teachers[:1]),
    )
    problems = verify(reader)
    if problems:
        raise CacheError(problems[0])


def signed(folder: Path, change: Callable[[Data], object]) -> None:
    """Change the manifest, and its identity with it: whoever can write the file can do that."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    try:
        blocks = [
            {k: v for k, v in block.items() if k not in ("repository", "revision", "licence")}
            for block in data["blocks"]
        ]
        facts = {
            "format_version": 2,
            "ids": data["ids_digest"],
            "held_out_rows": data["held_out_rows"],
            "rows_per_shard": data["rows_per_shard"],
            "blocks": blocks,
            "pooled": data["pooled"],
        }
        data["identity"] = checksum(canonical_json(facts).encode())
    except (AttributeError, TypeError):
        pass
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc", "..", ".hidden", "", "a/b", "a\\b", "a\0b", "a\nb"]
)
def test_teacher_whose_name_is_a_path_is_refused(name: str, own: Path) -> None:
    signed(own, lambda data: data["blocks"][0].update(teacher=name))
    with pytest.raises(CacheError, match="expected the name of a teacher, found"):
        CacheReader(own)


VALUES: list[Any] = [None, [], {}, "x", -1, 0, 10**30, True, 1.5, [[]], {"x": []}, ["x"]]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in plain data something could be put."""
    items: list[Any] = []
    if isinstance(data, dict):
        items = list(data)
    elif isinstance(data, list):
        items = list(range(len(data)))[:1]
    for key in items:
        yield (*path, key)
        yield from places(data[key], (*path, key))


def test_any_value_in_any_place_of_the_manifest_is_read_or_refused(own: Path) -> None:
    """With a matching identity; nothing but `CacheError` may come of it."""
    original = (own / "manifest.json").read_text()
    refused = []
    tried = list(places(json.loads(original)))
    assert len(tried) > 50
    for path in tried:
        for value in VALUES:

            def put(data: Data, path: tuple[Any, ...] = path, value: Any = value) -> None:
                for key in path[:-1]:
                    data = data[key]
                data[path[-1]] = value

            signed(own, put)
            try:
                reader = CacheReader(own)
                reader.vectors(range(len(reader)))
            except CacheError as error:
                refused.append(str(error))
            (own / "manifest.json").write_text(original)
    assert len(refused) > 0.5 * len(tried) * len(VALUES)
    assert max(map(len, refused)) < 2000


def many_rows(data: Data) -> None:
    data["rows"] = data["rows_per_shard"] = data["shards"][0]["rows"] = 10**15
    data["shards"] = data["shards"][:1]


def wide(data: Data) -> None:
    data["blocks"][1]["width"] += 10**12
    data["width"] += 10**12


def wide_pooled(data: Data) -> None:
    data["pooled"] = {"teacher": "bert", "width": 10**12, "body": "x"}


def backwards(data: Data) -> None:
    data["blocks"][0]["width"] = -8
    data["blocks"][1].update(offset=-8, width=48)


def empty(data: Data) -> None:
    data.update(rows=0, shards=[], held_out_rows=0)


def no_shards_size(data: Data) -> None:
    data["rows_per_shard"] = 0
    data["shards"] = [{**shard, "rows": 0} for shard in data["shards"]]
    data["rows"] = 0


@pytest.mark.parametrize("change", [many_rows, wide, wide_pooled, backwards, empty, no_shards_size])
def test_rows_and_widths_beyond_the_files_are_refused(
    change: Callable[[Data], None], own: Path
) -> None:
    signed(own, change)
    with pytest.raises(
        CacheError, match=r"manifest\.json: its rows, widths or sizes do not add up"
    ):
        CacheReader(own)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "build.json", "shards/00001.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ('{"rows": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\0" * 100, "not valid JSON"),
        (None, "has 3221225472 bytes, expected at most"),
    ],
    ids=["lists", "tables", "digits", "zeros", "gigabytes"],
)
def test_json_bomb_is_refused(name: str, text: str | None, message: str, own: Path) -> None:
    with (own / name).open("w") as stream:
        if text is None:
            stream.truncate(3 << 30)
        else:
            stream.write(text)
    with pytest.raises(CacheError, match=f"{name}.*{message}"):
        opened_read_and_verified(own)


FILES: dict[str, Callable[[Path], Path]] = {
    "manifest": lambda cache: cache / "manifest.json",
    "build": lambda cache: cache / "build.json",
    "plan": lambda cache: cache / "plan.json",
    "texts": lambda cache: plan_path(cache, 1),
    "shard": lambda cache: shard_file(cache, 1),
    "record": lambda cache: record_path(cache, 1),
    "teacher's file": lambda cache: cache / "teachers" / "lsa" / "model.safetensors",
}
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "plan": lambda cache: cache / "plan",
    "shards": lambda cache: cache / "shards",
    "teachers": lambda cache: cache / "teachers",
    "teacher": lambda cache: cache / "teachers" / "lsa",
}


def link(path: Path) -> None:
    """The same thing, but elsewhere."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listen(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [link, pipe, listen, folder])
@pytest.mark.parametrize("what", FILES)
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    what: str, change: Callable[[Path], None], own: Path
) -> None:
    path = FILES[what](own)
    change(path)
    kind = {link: "a symbolic link", folder: "a folder"}.get(change, "a pipe, socket or device")
    with pytest.raises(CacheError, match=rf"{path.name} is {kind}"):
        opened_read_and_verified(own)


@pytest.mark.parametrize("what", FOLDERS)
def test_folder_that_is_a_link_is_not_followed(what: str, own: Path) -> None:
    link(FOLDERS[what](own))
    with pytest.raises(CacheError, match=rf"{FOLDERS[what](own)} is a symbolic link"):
        opened_read_and_verified(own)
    if what == "shards":
        with pytest.raises(CacheError, match="shards is a symbolic link"):
            CacheReader(own, check_sizes=False).vectors([20])


_WATCHED = """
import json, sys
from pathlib import Path
import teacher_cache.verify, teacher_cache.repair
from teacher_cache.reader import CacheReader

cache = Path(sys.argv[1])
CacheReader(Path(sys.argv[2])).texts([0])  # whatever is imported at the first use
seen = []
RUNS = ("import", "exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.fork",
        "pickle.find_class", "socket.connect", "ctypes.dlopen")

def see(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        if not Path(arguments[0]).is_relative_to(cache) or arguments[1] not in (None, "r", "rb"):
            seen.append([event, arguments[0]])
    elif event in RUNS:
        seen.append([event, str(arguments[0])])

sys.addaudithook(see)
reader = CacheReader(cache, verify=True)
reader.vectors(range(56)), reader.texts(range(56))
problems = teacher_cache.verify.verify(reader)
teacher_cache.repair.repair(cache)
print(json.dumps([seen, problems]))
"""


def test_nothing_is_run_and_nothing_outside_of_the_folder_is_opened(
    own: Path, cache: CacheReader
) -> None:
    """Whatever models the manifest names: where they lie is never taken from it."""

    def name(data: Data) -> None:
        for block, repository in zip(data["blocks"], ("package:antigravity", "/etc"), strict=True):
            block["repository"] = repository

    signed(own, name)
    (own / "build.json").unlink()
    before = contents(own)
    result = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(own), str(cache.path)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert json.loads(result.stdout) == [[], []]
    assert contents(own) == before


def test_repair_takes_no_teacher_from_the_cache(own: Path) -> None:
    signed(own, lambda data: data["blocks"][0].update(repository="package:antigravity"))
    shard_file(own, 1).unlink()
    (own / "build.json").unlink()
    with pytest.raises(CacheError, match="this takes the teachers; give the recipe"):
        repair(own)
    with pytest.raises(CacheError, match="has the teacher 'bert', the recipe has lsa"):
        repair(own, [lsa()])
    assert "antigravity" not in sys.modules


def test_search_imports_no_package_because_a_cache_names_it(
    own: Path, tmp_path: Path, small_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    signed(own, lambda data: data["blocks"][0].update(repository="package:of_a_stranger"))
    reader = CacheReader(own)
    with pytest.raises(
        CacheError, match="no package is imported because a cache names it; give its folder with "
        "--model bert=FOLDER, leave it out with --teachers lsa, or ask for a row instead",
    ):  # fmt: skip
        encode(reader, "a new river", reader.blocks())
    assert "of_a_stranger" not in sys.modules
    vector = encode(reader, "a new river", reader.blocks(), folders={"bert": small_encoder})
    assert vector[:32].any()


def test_thousand_shards_are_looked_at_once_each(own: Path, tmp_path: Path) -> None:
    """Opening asks for the size of each file, and opens none but the manifest."""
    data = json.loads((own / "manifest.json").read_text())
    manifest = Manifest.from_json(data, "")
    template = shard_file(own, 0)
    big = tmp_path / "big"
    (big / "shards").mkdir(parents=True)
    shards = []
    for number in range(1000):
        record = replace(manifest.shards[0], checksum=f"{number:032x}"[::-1])
        os.link(template, big / "shards" / f"{number:05d}-{record.checksum[:8]}.arrow")
        shards.append(record.to_json())
    (big / "manifest.json").write_text(json.dumps({**data, "shards": shards, "rows": 16000}))
    looks: list[str] = []

    def see(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__module__ in ("posix", "io", "_io"):
            looks.append(function.__name__)

    sys.setprofile(see)
    try:
        CacheReader(big)
    finally:
        sys.setprofile(None)
    assert looks.count("stat") + looks.count("lstat") <= 1005
    assert looks.count("open") <= 2
