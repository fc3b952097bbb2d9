"""Real text without a download: prose from the docstrings of the installed Python packages."""

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import xxhash

# Packages that this project's dependencies bring, besides the standard library: the ones with the
# most prose for the time it takes to parse them. A part of a package follows a slash. All of
# torch and transformers would take as long as the rest together, for text that repeats itself.
PACKAGES = (
    "accelerate",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "joblib",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "PIL",
    "pydantic",
    "rich",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "tensorboard",
    "torch/distributions",
    "torch/nn",
    "torch/optim",
    "torch/utils",
)
# Tests, and copies of other packages.
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "idlelib", "lib2to3"),
    *("_vendor", "externals", "site-packages", "dist-packages"),
}

CHARACTERS = (40, 1000)
WORDS = 8
# Of the words of a paragraph: at least so many are made of letters alone (names of variables,
# calls and numbers are not), and at least so many are among the most frequent ones of English.
PLAIN_WORDS = 0.85
FREQUENT_WORDS = 0.2
# Paragraphs that begin or end with the same words are taken for one template filled in twice.
TEMPLATE_WORDS = 5

_FREQUENT = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been but by can do does for from had has have if in into is it its
        may more no not of on one only or other than that the their them then there these they
        this to was we were when where which will with would you your
        """,
    )
)
_PLAIN = re.compile(r"""[("'\[]*[A-Za-z]+(?:[-'/][A-Za-z]+)*[)"'\].,;:!?]*""")
# What a heading, a list, a field, a directive or a decorator begins with.
_NO_PROSE_START = re.compile(r"[-*+•#@:|]|\d+[.)]\s|\.\. |\w+:$")
_UNDERLINE = re.compile(r"([-=~^*#])\1{2,}$")
# Code, tables, formulas, links, citations and what is left of markup that was not understood.
_NO_PROSE = re.compile(
    r""">>>|::|==|--|___|\.\.\s|\s[:=]|\]_|\[\d+\]|[\\|{}$<>`@~^]|https?:|\bpp\.|\bvol\.|\bdoi\b"""
    r"""|\bISBN|\bet al\b|\barXiv|\(\d{4}\)""",
    re.IGNORECASE,
)
_MARKUP = (
    (re.compile(r":[\w:.+-]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"\1"),  # :class:`~a.B`
    (re.compile(r"\[`([^`\]]+)`\]"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`<]+?)(?:\s*<[^`>]*>)?`_*"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*([^*\s][^*]*)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](link)
    (re.compile(r"\s+"), " "),
)


def python_docstrings() -> Iterator[str]:
    """Give the paragraphs of prose in the docstrings of the standard library and of `PACKAGES`.

    The modules are parsed, never imported; packages that are not there are passed over. A
    paragraph is one line of 40 to 1,000 characters without markup, and no two begin or end with
    the same five words. They come in the order of their hashes, so that the first n are a fair
    sample of all packages, and depend on nothing but the versions installed.
    """
    paragraphs = []
    templates: set[tuple[str, ...]] = set()
    for path in _modules():
        for docstring in _docstrings(path):
            for paragraph in prose(docstring):
                words = re.findall(r"[a-z]+", paragraph.lower())
                ends = {("begin", *words[:TEMPLATE_WORDS]), ("end", *words[-TEMPLATE_WORDS:])}
                if templates.isdisjoint(ends):
                    templates |= ends
                    paragraphs.append(paragraph)
    yield from sorted(paragraphs, key=lambda text: xxhash.xxh3_64_intdigest(text.encode()))


def prose(docstring: str) -> Iterator[str]:
    """Give the paragraphs of a docstring that are running English, each as one clean line.

    Only text at the margin counts: what is indented is code, or belongs to a parameter.
    """
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = block.splitlines()
        if len(lines) > 1 and _UNDERLINE.match(lines[1]):
            del lines[:2]
        if any(line[:1].isspace() or _NO_PROSE_START.match(line) for line in lines):
            continue
        text = "\n".join(lines)
        for markup, plain in _MARKUP:
            text = markup.sub(plain, text)
        if _is_prose(text := text.strip()):
            yield text


def _is_prose(text: str) -> bool:
    if not CHARACTERS[0] <= len(text) <= CHARACTERS[1] or _NO_PROSE.search(text):
        return False
    if not text.lstrip("\"'(")[:1].isupper() or text.rstrip("\"')")[-1:] not in tuple(".!?"):
        return False
    words = text.split()
    plain = sum(1 for word in words if _PLAIN.fullmatch(word))
    frequent = sum(1 for word in words if word.lower().strip("\"'().,;:!?") in _FREQUENT)
    return (
        len(words) >= WORDS
        and plain >= PLAIN_WORDS * len(words)
        and frequent >= FREQUENT_WORDS * len(words)
    )


def _modules() -> Iterator[Path]:
    for package in _packages():
        for folder, subfolders, files in os.walk(package):
            subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
            yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


def _packages() -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for name in PACKAGES:
        package, _, part = name.partition("/")
        found = importlib.util.find_spec(package)
        if found is not None:
            for folder in found.submodule_search_locations or ():
                yield Path(folder, part)


def _docstrings(path: Path) -> Iterator[str]:
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a package's stray escapes are no concern of ours
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # written for another Python
            return
    # Statements alone: ast.walk visits every expression, for as long as parsing takes.
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        for part in ("body", "orelse", "handlers", "finalbody"):
            nodes.extend(getattr(node, part, ()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
