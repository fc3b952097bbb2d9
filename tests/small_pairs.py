"""Writers of image–caption pairs in every layout that is read."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from small_vision import picture

Pair = tuple[bytes, str]


def pairs(count: int, words: str = "a picture of number") -> list[Pair]:
    return [(picture(100 + i), f"{words} {i}") for i in range(count)]


def conversation(caption: str) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "<image>\nWhat is to be seen?"},
        {"from": "gpt", "value": caption},
    ]


def write_folder(folder: Path, content: list[Pair], *, kind: str = "jsonl") -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (data, caption) in enumerate(content):
        (folder / "images" / f"{number:03}.png").write_bytes(data)
        rows.append({"image": f"images/{number:03}.png", "caption": caption})
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        lines = ["image,caption", *(f'{row["image"]},"{row["caption"]}"' for row in rows)]
    (folder / f"captions.{kind}").write_text("\n".join(lines) + "\n")
    return folder


def write_parquet(folder: Path, content: list[Pair], *, struct: bool = True) -> Path:
    folder.mkdir(parents=True)
    images = [{"bytes": d, "path": None} if struct else d for d, _ in content]
    table = pa.table({"image": images, "caption": [caption for _, caption in content]})
    pq.write_table(table, folder / "part.parquet", row_group_size=3)
    return folder


def write_tar(folder: Path, content: list[Pair], *, as_json: bool = True) -> Path:
    folder.mkdir(parents=True)
    half = len(content) // 2
    for name, part in (("a", content[:half]), ("b", content[half:])):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number, (data, caption) in enumerate(part):
                row = {"id": str(number), "source": "made", "conversations": conversation(caption)}
                text = json.dumps(row) if as_json else caption
                files = {"png": data, "json" if as_json else "txt": text.encode()}
                for kind, content_of in files.items():
                    member = tarfile.TarInfo(f"{name}/{number:04}.{kind}")
                    member.size = len(content_of)
                    tar.addfile(member, BytesIO(content_of))
    return folder
