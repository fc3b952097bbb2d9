"""Who may import whom, read from the sources; and what is not loaded, asked of a fresh process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher_cache.reader import CacheReader

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "data", "student", "teacher_cache")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A module may import what lies under one of the names of the longest prefix that fits it.
MAY_IMPORT = {
    "cli": PACKAGES,
    "data": ("data",),
    "student": (
        "student",
        "teacher_cache.format",
        "teacher_cache.reader",
        "teacher_cache.models",
        "data.files",
        "data.images",
        "data.pairs",
    ),
    "teacher_cache": ("teacher_cache", "data"),
    "teacher_cache.format": (),
    "teacher_cache.opening": ("teacher_cache.format", "teacher_cache.mapping"),
    "teacher_cache.reader": (
        "teacher_cache.format",
        "teacher_cache.opening",
        "teacher_cache.shards",
    ),
    "teacher_cache.shards": (
        "teacher_cache.format",
        "teacher_cache.mapping",
        "teacher_cache.opening",
        "teacher_cache.parquet",
    ),
    "teacher_cache.mapping": (),
    "teacher_cache.parquet": ("teacher_cache.format",),
    "teacher_cache.models": (),
}

HEAVY = (
    "PIL",
    "accelerate",
    "datasets",
    "faiss",
    "matplotlib",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch",
    "transformers",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            members = [f"{source}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else source for member in members]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def under(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def test_the_walk_sees_imports_of_every_form() -> None:
    seen = set(imports(ROOT / "teacher_cache" / "located.py"))
    assert {"teacher_cache.plan", "teacher_cache.models", "teacher_cache.encoders.loading"} <= seen
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_import_only_what_the_design_allows(path: Path) -> None:
    name = name_of(path)
    rule = max((prefix for prefix in MAY_IMPORT if under(name, prefix)), key=len)
    wrong = {
        imported
        for imported in imports(path)
        if not any(under(imported, allowed) for allowed in MAY_IMPORT[rule])
    }
    assert not wrong, f"{name} may import {MAY_IMPORT[rule]}, found {wrong}"


def loaded_by(code: str) -> set[str]:
    """What is in memory after a fresh process ran this."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def test_a_cache_opens_with_neither_torch_nor_anything_else_of_ours(cache: CacheReader) -> None:
    loaded = loaded_by(
        "from teacher_cache.reader import CacheReader\n"
        f"CacheReader({str(cache.path)!r}).vectors([0])"
    )
    ours = {name for name in loaded if name.split(".")[0] in PACKAGES}
    modules = ("format", "mapping", "opening", "reader", "shards")
    assert ours == {"teacher_cache", *(f"teacher_cache.{name}" for name in modules)}
    assert not loaded & {*HEAVY, "pydantic"}


def test_looking_into_a_cache_loads_no_teacher(cache: CacheReader) -> None:
    loaded = loaded_by(
        "import contextlib, io\n"
        "from cli import cache\n"
        "for line in (['inspect'], ['search', '--', '3']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        f"        cache.app([line[0], {str(cache.path)!r}, *line[1:]], standalone_mode=False)"
    )
    assert {"faiss", "scipy"} <= loaded
    assert not loaded & {"torch", "transformers", "sklearn", "matplotlib"}


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import contextlib, io\n"
        "from cli import cache, student, sweep, train\n"
        "lines = [(cache.app, []), (student.app, []), (train.app, []), (sweep.app, ['sweep'])]\n"
        "names = 'build', 'inspect', 'search', 'verify', 'repair', 'join', 'merge', 'export'\n"
        "lines += [(cache.app, [name]) for name in names]\n"
        "lines += [(student.app, [name]) for name in ('encode', 'evaluate', 'export', 'recall')]\n"
        "for app, line in lines:\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        app([*line, '--help'], standalone_mode=False)\n"
        "    assert 'Usage' in out.getvalue()"
    )
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_what_embeds_is_loaded_when_it_is_asked_for() -> None:
    loaded = loaded_by("import student, student.trained, student.vector_files")
    assert not loaded & {"torch", "transformers"}
    assert "torch" in loaded_by("from student import load")


def test_training_and_evaluating_load_no_teacher() -> None:
    modules = sorted(name for name in MODULES if under(name, "student"))
    loaded = loaded_by("\n".join(f"import {name}" for name in modules))
    assert {"student.train", "teacher_cache.reader", "torch"} <= loaded
    allowed = {
        "teacher_cache",
        "teacher_cache.mapping",
        "teacher_cache.opening",
        "teacher_cache.shards",
        *MAY_IMPORT["student"][1:],
    }
    ours = {name for name in loaded if under(name, "teacher_cache") or under(name, "data")}
    inside_data = {
        *("data", "data.captions", "data.drawings"),
        *("data.pair_files", "data.pair_sources", "data.pairs_spec"),
    }
    assert ours - inside_data <= allowed


def test_finished_cache_is_returned_without_loading_a_teacher(
    cache: CacheReader, small_encoder: Path
) -> None:
    loaded = loaded_by(
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from jobs import bert, corpus, lsa, made\n"
        f"cache = Path({str(cache.path)!r})\n"
        f"teachers = [bert(Path({str(small_encoder)!r})), lsa()]\n"
        "assert made(cache, corpus(cache.parent), teachers).rows == 56"
    )
    assert "teacher_cache.encoders.sentence_transformer" in loaded
    assert not loaded & {"sentence_transformers", "transformers", "sklearn"}
