"""From the name of a model to the folder of its files, and what those files are. No torch.

Teachers and students name models in the same three ways, so both phases use this module.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

PACKAGE_PREFIX = "package:"
"""`package:NAME` names a model inside an installed Python package that has `get_model_path`."""

HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model"]
"""What is fetched from a hub: safetensors and text, never pickles, never code."""

_BODY_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
_CHUNK = 1 << 24


class ModelError(Exception):
    """A model that cannot be found or is not what is needed: one line that says what and where."""


def locate(
    repository: str, revision: str | None = None, *, what: str, base: Path = Path()
) -> tuple[Path, str | None]:
    """The folder of a model's files, and the hub commit where it came from a hub.

    None for all others, whatever revision was asked for: nobody can say what a folder holds.
    `repository` is `package:NAME`, a local folder (relative ones are seen from `base`), or a hub
    id, fetched at `revision`. `what` names the model in errors: "teacher 'x'".

    Raises:
        ModelError: nothing lies there, or the hub does not answer.
    """
    if repository.startswith(PACKAGE_PREFIX):
        return _package_folder(repository.removeprefix(PACKAGE_PREFIX), what), None
    folder = (base / Path(repository).expanduser()).resolve()
    if folder.is_dir():
        return folder, None
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise ModelError(
            f"{what}: there is no folder {folder}; expected a folder, {PACKAGE_PREFIX}NAME "
            "or a hub id like org/model"
        )
    return _hub_folder(repository, revision, what)


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """XXH3-128, in hexadecimal, over names and contents of the files a model is read from."""
    digest = xxhash.xxh3_128()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def transformer_folder(folder: Path) -> Path:
    """Where the transformer of a model's folder lies: a sentence-transformers folder may say."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return folder
    first = json.loads(modules.read_text(encoding="utf-8"))[0]
    return folder / str(first.get("path", ""))


def body_fingerprint(folder: Path) -> str:
    """The fingerprint of a model's transformer alone: weights, configuration and tokenizer.

    Two folders with the same one give every text the same token states, whatever heads they have.
    """
    place = transformer_folder(folder)
    files = [place / name for name in _BODY_FILES if (place / name).is_file()]
    return fingerprint(place, [*files, *place.glob("*.safetensors")])


def _package_folder(package: str, what: str) -> Path:
    if not package.isidentifier():
        raise ModelError(f"{what}: expected {PACKAGE_PREFIX}NAME, found {package!r} as its name")
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        distribution = package.replace("_", "-")
        raise ModelError(
            f"{what} comes with the package {distribution}, which is not installed: "
            f"pip install {distribution}"
        ) from None
    if not hasattr(module, "get_model_path"):
        raise ModelError(f"{what}: the package {package} holds no model (no get_model_path)")
    return Path(module.get_model_path())


def _hub_folder(repository: str, revision: str | None, what: str) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=HUB_PATTERNS)
    except Exception as error:  # the hub client raises from several libraries' hierarchies
        raise ModelError(
            f"{what}: {repository} (revision {revision or 'newest'}) is neither a folder nor "
            f"could it be fetched from the hub: {type(error).__name__}; give a local folder"
        ) from error
    # A snapshot's folder is named by the commit that it holds.
    return Path(folder), Path(folder).name
