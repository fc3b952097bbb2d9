"""The dataset card of an exported cache: what is in it, of whom, under which licences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_cache.format import Block, Manifest

FACTS_FILE = "export.json"
"""What was exported, for programs: the manifest without its shards, and the columns."""

_SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 10**10, 10**11, 10**12)


def dataset_card(
    manifest: Manifest, *, columns: Mapping[str, Sequence[str]], splits: Sequence[str]
) -> str:
    """A README.md with the front matter that `datasets` and its hub read.

    `columns` are the columns of vectors and the teachers of each; `splits` those that have files.
    No licence is declared: what the cache knows of licences is told, the decision is not its own.
    """
    exported = {teacher for teachers in columns.values() for teacher in teachers}
    blocks = [block for block in manifest.blocks if block.teacher in exported]
    names = ", ".join(f"`{block.teacher}`" for block in blocks)
    rows = f"{manifest.rows:,} texts, {manifest.held_out_rows:,} of them held out"
    first = next(iter(columns))
    return f"""---
{_front_matter(manifest, blocks, splits)}---

# Teacher vectors

Unit vectors of {names} for {rows}, to distil students from. They were exported from a teacher cache
of identity `{manifest.identity}`; `{FACTS_FILE}` has its manifest.

## Reading it

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="{splits[0]}").with_format("numpy")
print(rows[0]["text"], rows[0]["{first}"].shape)
```

```python
import polars

rows = polars.scan_parquet("path/to/this/folder/data/{splits[0]}-*.parquet")
print(rows.select("text", "{first}").head(3).collect())
```

```sql
SELECT text, {first} FROM 'path/to/this/folder/data/{splits[0]}-*.parquet' LIMIT 3;  -- DuckDB
```

| column | meaning |
|---|---|
| `id` | XXH3-128 of the text's UTF-8, in hexadecimal |
| `text` | the text, without any prompt |
| `source` | the corpus source it came from |
{_vector_columns(manifest, columns)}

Vectors are the cache's float16 values as float32. Rows of `held_out` are not to be trained on.

## Teachers

| teacher | width | repository | revision | max tokens | pooling | dtype |
|---|---|---|---|---|---|---|
{_rows([_teacher(block) for block in blocks])}

The prompts, by corpus source (`default` for the others), and the digest of the files that each
teacher was read from:

```json
{_json({b.teacher: {"prompts": b.prompts, "fingerprint": b.fingerprint} for b in blocks})}
```

## Licences

| teacher | licence of the model |
|---|---|
{_rows([(block.teacher, block.licence) for block in blocks])}

{_licence_note(blocks)}

The texts stay under the terms of where they come from, which a cache does not record: see the
corpus below. This card declares no licence for the whole; whoever publishes it decides.

## Corpus

```json
{_json(manifest.corpus)}
```

{_counts(manifest.counts)}
"""


def _front_matter(manifest: Manifest, blocks: Sequence[Block], splits: Sequence[str]) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=f"Teacher vectors ({', '.join(block.teacher for block in blocks)})",
        tags=["embeddings", "distillation"],
        task_categories=["feature-extraction", "sentence-similarity"],
        size_categories=[_size(manifest.rows)],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in splits
                ],
            }
        ],
    )
    text: str = data.to_yaml(line_break="\n")
    return text.rstrip("\n") + "\n"


def _size(rows: int) -> str:
    """The hub's category of so many rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M",
             "100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T"]  # fmt: skip
    return names[sum(rows >= bound for bound in _SIZES)]


def _teacher(block: Block) -> tuple[str, ...]:
    return (
        block.teacher,
        str(block.width),
        block.repository,
        block.revision or "not recorded",
        str(block.max_tokens or "all"),
        block.pooling,
        block.dtype,
    )


def _vector_columns(manifest: Manifest, columns: Mapping[str, Sequence[str]]) -> str:
    widths = {block.teacher: block.width for block in manifest.blocks}
    lines = []
    for name, teachers in columns.items():
        width = sum(widths[teacher] for teacher in teachers)
        what = f"unit vector of {teachers[0]}, {width} wide"
        if len(teachers) > 1:
            parts = ", ".join(f"{teacher} ({widths[teacher]})" for teacher in teachers)
            what = (
                f"unit vectors of {parts}, concatenated and normalised again, {width} wide: a "
                "product of two is the mean of the teachers' cosines"
            )
        lines.append((f"`{name}`", what))
    return _rows(lines)


def _licence_note(blocks: Sequence[Block]) -> str:
    note = (
        "Whether the licence of a model binds the vectors it gives is a question that these "
        "vectors inherit;\nsettle it before you publish or use them."
    )
    bound = [block for block in blocks if "-nc" in block.licence.lower()]
    for block in bound:
        note += f"\nThe licence of `{block.teacher}`, {block.licence}, is for non-commercial use."
    return note


def _counts(counts: Mapping[str, Any]) -> str:
    if not counts:
        return "How many texts each source gave was not recorded."
    names = list(dict.fromkeys(name for source in counts.values() for name in source))
    head = f"| source | {' | '.join(name.replace('_', ' ') for name in names)} |"
    rule = "|---" * (len(names) + 1) + "|"
    rows = [
        (source, *(f"{numbers.get(name, 0):,}" for name in names))
        for source, numbers in counts.items()
    ]
    return f"{head}\n{rule}\n{_rows(rows)}"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False)
