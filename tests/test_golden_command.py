"""Golden files that cannot be used, the command, and the page that tells how to write one."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import edit_json, write_stella
from golden_files import (
    NAMES,
    agreement,
    disturb_layer,
    load,
    teacher,
    write_foreign,
    write_goldens,
    write_teachers,
)
from jobs import write_corpus
from safetensors.numpy import load_file

from cli import cache as cache_command
from teacher_cache.golden import GoldenError, compare, read_goldens
from teacher_cache.teachers import Teacher

DOCUMENT = Path(__file__).parent.parent / "docs/golden-vectors.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def goldens(folders: dict[str, Path]) -> dict[str, Path]:
    return write_goldens(folders)


def test_a_damaged_or_foreign_file_is_refused_in_a_line(
    folders: dict[str, Path], goldens: dict[str, Path], tmp_path: Path
) -> None:
    row = teacher(NAMES[0], folders[NAMES[0]])
    whole = goldens[NAMES[0]].read_bytes()
    vectors = load_file(goldens[NAMES[0]])["vectors"]
    zero, endless = vectors.copy(), vectors.copy()
    zero[3], endless[5, 7] = 0, np.inf
    path = tmp_path / "golden"

    def refuse(match: str) -> None:
        with pytest.raises(GoldenError, match=match) as error:
            read_goldens([path], [row])
        assert str(path) in str(error.value)

    refuse("there is no golden file")
    for data in (b"", b"not safetensors at all", whole[:-1], whole[:1000]):
        path.write_bytes(data)
        refuse("is not a whole safetensors file")
    for given, match in (
        ({"vectors": vectors, "name": "embeddings"}, "expected one tensor, `vectors`"),
        ({"vectors": vectors.astype(np.float16)}, "expected one tensor, `vectors` in F32"),
        ({"vectors": vectors[0]}, "expected one tensor, `vectors` in F32"),
        ({"vectors": vectors[:63]}, "has 64 texts and 63 vectors"),
        ({"vectors": vectors[:0], "texts": ""}, "has 0 texts and 0 vectors"),
        ({"vectors": zero}, r"vector 3 is no reference, its length is 0\.0"),
        ({"vectors": endless}, "vector 5 is no reference, its length is inf"),
        ({"vectors": vectors, "texts": None}, "its metadata has no 'texts'"),
        ({"vectors": vectors, "teacher": None}, "its metadata has no 'teacher'"),
        ({"vectors": vectors, "texts": '{"prompt": ""}\n'}, "among its texts, line 1 is not"),
        ({"vectors": vectors, "texts": '["a"]'}, "among its texts, line 1 is not"),
        ({"vectors": vectors, "texts": "hello"}, "among its texts, line 1 is not"),
        ({"vectors": vectors, "max_tokens": "many"}, "max_tokens is 'many'"),
        ({"vectors": vectors, "max_tokens": "512"}, "taken at max_tokens 512, .* has 96"),
        ({"vectors": vectors[:, :16].copy()}, "holds vectors 16 wide, .* gives 40"),
        ({"vectors": vectors, "teacher": "e5"}, "the vectors of teacher 'e5', not of 'stella"),
    ):
        write_foreign(path, row, **given)
        refuse(match)


def test_another_width_is_refused_where_only_the_model_knows_it(
    folders: dict[str, Path], goldens: dict[str, Path]
) -> None:
    row = teacher(NAMES[1], folders[NAMES[1]])
    (golden,) = read_goldens([goldens[NAMES[1]]], [replace(row, width=None)])
    narrow = replace(golden, vectors=golden.vectors[:, :16])
    with pytest.raises(GoldenError, match=r"holds vectors 16 wide, .* gives 32"):
        compare(load(row), row, narrow)


def call(*arguments: object) -> int:
    before, sys.argv = sys.argv, ["jasper-cache", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cache_command.main()
    finally:
        sys.argv = before
    return int(stop.value.code or 0)


def write_recipe(folder: Path, row: Teacher) -> Path:
    recipe = folder / "recipe.toml"
    recipe.write_text(
        "[corpus]\ntexts = 40\n[[corpus.sources]]\nname = 'web'\npath = 'web.jsonl'\n"
        f"[[teachers]]\nname = '{row.name}'\npath = '{row.repository}'\nwidth = {row.width}\n"
        f"max_tokens = {row.max_tokens}\ndtype = '{row.dtype}'\n"
    )
    return recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_checks_and_builds(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(folders[name], tmp_path / "model")
    write_corpus(tmp_path)
    given = ("--teacher", name, "--recipe", write_recipe(tmp_path, teacher(name, own)))
    golden, build_it = tmp_path / "golden.safetensors", ("build", "--recipe", given[-1], "--out")
    assert call("golden", *given, "--write", golden, "--device", "cpu") == 0
    assert call("golden", *given, "--check", golden, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "the lowest of 64 cosines, each at least 0.9995" in out
    assert "dtype: float32" in out
    assert call(*build_it, tmp_path / "a", "--golden", golden, "--device", "cpu") == 0
    disturb_layer(own)
    capsys.readouterr()
    assert call("golden", *given, "--check", golden, "--device", "cpu") == 1
    assert call(*build_it, tmp_path / "b", "--golden", golden, "--device", "cpu") == 2
    err = capsys.readouterr().err
    assert err.count("does not give the vectors of") == 2
    assert "no shard was written" in err


def test_the_command_refuses_in_one_line(
    folders: dict[str, Path],
    goldens: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stella, golden = ("--teacher", NAMES[0], "--path", folders[NAMES[0]]), goldens[NAMES[0]]
    recipe = write_recipe(tmp_path, teacher(NAMES[0], folders[NAMES[0]]))
    (tmp_path / "broken").write_bytes(golden.read_bytes()[:-9])
    for given, message in (
        ((), "give one of --texts FILE, --write FILE and --check FILE"),
        (("--texts", "a", "--check", "b"), "give one of --texts FILE"),
        (("--check", golden), "give --teacher NAME"),
        ((*stella, "--check", golden, "--dtype", "int8"), "--dtype is one of float32, bfloat16"),
        ((*stella, "--check", golden), "taken at max_tokens 96"),
        ((*stella, "--check", tmp_path / "none"), "there is no golden file"),
        ((*stella, "--check", tmp_path / "broken"), "is not a whole safetensors file"),
        ((*stella, "--check", goldens[NAMES[1]]), "of teacher 'nv-embed-v2'"),
        (("--teacher", "tfidf-svd", "--write", tmp_path / "new"), "needs a `path`"),
        (("--teacher", "e5", "--recipe", recipe, "--write", "a"), "has no teacher 'e5'"),
        ((*stella, "--write", golden), "exists; a reference is taken once"),
    ):
        assert call("golden", *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_the_documented_lines_write_a_file_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that the stock library reads as the original's code does: its configuration says
    # that it is not causal, its tokenizer.json appends the end-of-text token.
    folder = write_stella(tmp_path / "stella", appends_eos=True, is_causal=False)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    monkeypatch.chdir(tmp_path)
    assert call("golden", "--texts", "golden-texts.jsonl") == 0
    script = documented("stella")
    for constant, value in (("FOLDER", str(folder)), ("WIDTH", 40)):
        script, count = re.subn(
            rf"^{constant} = .*$", f"{constant} = {value!r}", script, flags=re.M
        )
        assert count == 1
    exec(compile(script, "golden-vectors.md", "exec"), {})
    row = teacher(NAMES[0], folder, max_tokens=512)
    found = agreement(row, tmp_path / "stella-en-1.5b-v5.golden.safetensors")
    assert found.failure is None
    assert found.cosines.min() > 1 - 1e-6


def documented(model: str) -> str:
    scripts = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    (script,) = (script for script in scripts if model in script.lower())
    return str(script)


def test_the_documented_scripts_differ_in_the_model_alone() -> None:
    ends = [documented(model).partition("about = {")[2] for model in ("stella", "nv-embed")]
    assert re.sub(r"stella-en-1\.5b-v5", "nv-embed-v2", ends[0]) == ends[1]
    compile(documented("nv-embed"), "golden-vectors.md", "exec")
