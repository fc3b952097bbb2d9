"""Two small teachers, each with a golden file from its float64 reference, and faults to find."""

from pathlib import Path
from typing import Any

import numpy as np
import references
from checkpoints import read_weights, write_nv_embed, write_stella, write_weights
from numpy.typing import NDArray
from safetensors.numpy import save_file

from teacher_cache.encoders import loading
from teacher_cache.golden import Agreement, check_golden
from teacher_cache.golden_texts import golden_texts, to_lines
from teacher_cache.teachers import Teacher, TeacherSpec, resolve

LIMIT = 96
NAMES = ("stella-en-1.5b-v5", "nv-embed-v2")


def teacher(name: str, folder: Path, **changes: Any) -> Teacher:
    """A row of the table, read from a small folder, in float32."""
    width = 40 if name == NAMES[0] else 32
    spec = {"name": name, "path": str(folder), "width": width, "dtype": "float32"}
    return resolve(TeacherSpec.model_validate({**spec, "max_tokens": LIMIT, **changes}))


def write_teachers(folder: Path) -> dict[str, Path]:
    """The folders of two small teachers, by name."""
    written = (write_stella(folder / NAMES[0]), write_nv_embed(folder / NAMES[1]))
    return dict(zip(NAMES, written, strict=True))


def write_goldens(folders: dict[str, Path]) -> dict[str, Path]:
    """A golden file beside each folder, from the float64 references, by name."""
    rows = [teacher(name, folder) for name, folder in folders.items()]
    return {
        row.name: write_foreign(
            folders[row.name].parent / f"{row.name}.golden", row, by_reference(row)
        )
        for row in rows
    }


def load(row: Teacher) -> Any:
    """The teacher's encoder, on the CPU."""
    folder, _ = loading.locate(row)
    return loading.load_encoder(row, folder, device="cpu", token_budget=None)


def by_reference(row: Teacher) -> NDArray[np.float32]:
    """The vectors of the 64 texts in float64, by what the model is known to compute."""
    folder = Path(row.repository or "")
    texts = golden_texts()
    prepared = load(row).prepare([t.text for t in texts], [t.prompt for t in texts])
    weights = read_weights(folder)
    if row.encoder == "stella":
        dense = read_weights(folder / "2_Dense_40")
        vectors = [
            references.stella(weights, dense, ids.tolist(), heads=6, kv_heads=2)
            for ids in prepared.ids
        ]
    else:
        vectors = [
            references.nv_embed(weights, ids.tolist(), int(start), heads=4, kv_heads=2, cross=3)
            for ids, start in zip(prepared.ids, prepared.pooled_from, strict=True)
        ]
    return np.stack(vectors).astype(np.float32)


def write_foreign(
    path: Path, row: Teacher, vectors: NDArray[Any], name: str = "vectors", **changes: Any
) -> Path:
    """A golden file as any environment may write it; a change to None leaves its key out."""
    texts = to_lines(golden_texts())
    metadata = {"teacher": row.name, "max_tokens": str(row.max_tokens), "texts": texts, **changes}
    save_file({name: vectors}, path, {k: v for k, v in metadata.items() if v is not None})
    return path


def agreement(row: Teacher, golden: Path) -> Agreement:
    """What a check of the teacher against a golden file finds."""
    return check_golden(golden, row, device="cpu")


def disturb_layer(folder: Path) -> None:
    """Add noise of 30 % to one matrix of the second layer of a folder's weights."""
    weights = read_weights(folder)
    (key,) = (key for key in weights if key.endswith("layers.1.mlp.down_proj.weight"))
    noise = np.random.default_rng(0).normal(size=weights[key].shape)
    weights[key] += (0.3 * weights[key].std() * noise).astype(np.float32)
    write_weights(folder, weights)
