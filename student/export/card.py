"""The model card of an exported student: how to load it, whose vectors it learned, how well.

No licence is declared but one that forbids: what is known of licences is told, the decision is
its publisher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from student.body import FIRST_TRANSFORMERS, is_decoder
from student.export.names import dense_folder, plain_name
from student.export.origin import non_commercial, origin, sources, table
from student.export.past import Past
from student.model import Student
from student.spec import POOLED
from student.stages import width_of
from teacher_cache.models import PACKAGE_PREFIX

Record = Mapping[str, Any]

_TAGS = ("feature-extraction", "distillation")


def model_card(
    student: Student, entries: Sequence[str], record: Record, past: Past, *, onnx: bool
) -> str:
    """The README.md of a sentence-transformers folder with these heads, the default one first."""
    parts = ["# A distilled embedding model", _about(student, entries), _LOADING]
    if entries:
        parts.append(_choosing(student, entries))
    if onnx:
        parts.append(_onnx(student, entries))
    parts += origin(student, record, past)
    data = {"library_name": "sentence-transformers", "tags": ["sentence-transformers", *_TAGS]}
    return _card(data, student, record, past, parts)


def jasper_card(student: Student, heads: Sequence[str], record: Record, past: Past) -> str:
    """The README.md of a folder in the released checkpoint's layout."""
    widths = ", ".join(f"{student.head_widths[head]} (`{head}`)" for head in heads)
    parts = [
        "# A distilled embedding model of texts and images",
        f"Gives raw vectors {widths} wide, from at most {student.spec.max_tokens} tokens or one "
        "image. The\nfolder has the layout of the released Jasper checkpoint; the code that reads "
        "it is not in it.",
        *origin(student, record, past),
    ]
    return _card({"tags": [*_TAGS, "multimodal"]}, student, record, past, parts)


def _card(
    data: Mapping[str, Any], student: Student, record: Record, past: Past, parts: Sequence[str]
) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    origins = [source.get("pairs") or source for source in sources(past)]
    datasets = [each["dataset"] for each in origins if each.get("dataset")]
    facts = ModelCardData(
        pipeline_tag="sentence-similarity",
        base_model=_hub_name(student.spec.init, record.get("init_path", "")),
        datasets=datasets or None,
        **_licence(record["blocks"]),
        **data,
    )
    front, body = facts.to_yaml(line_break="\n"), "\n\n".join(parts)
    return str(ModelCard(f"---\n{front}\n---\n\n{body}\n"))


def _licence(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The front matter's licence: a teacher's that forbids commercial use; else none is claimed,
    however free the teachers' are."""
    bound = {block["licence"] for block in blocks if non_commercial(block)}
    if len(bound) == 1 and (licence := bound.pop()).startswith("cc-by-nc"):
        return {"license": licence}
    return {"license": "other", "license_name": "undecided", "license_link": "README.md"}


def _hub_name(name: str, found: str) -> str | None:
    """A model's id on the hub; None for a folder or a package. `found` is where it lay: of a folder
    that was named `models/body`, seen from a recipe, this ends alike."""
    local = name.startswith((PACKAGE_PREFIX, ".", "/", "~")) or found.endswith(f"/{name}")
    return None if local or name.count("/") != 1 else name


def _about(student: Student, entries: Sequence[str]) -> str:
    what = f"raw vectors {student.hidden} wide (`{POOLED}`)"
    if entries:
        width = width_of(entries[0], student.head_widths)
        what = f"unit-length vectors {width} wide (`{entries[0]}`)"
    text = f"Gives {what}, from at most {student.spec.max_tokens} tokens."
    if student.spec.prompt:
        text += f"\nBefore every text it puts its prompt, as in training: `{student.spec.prompt!r}`"
    if is_decoder(student.text):
        text += (
            f"\n\nThe body is a {type(student.text).__name__} that attends both ways. It needs "
            f"transformers {FIRST_TRANSFORMERS} or newer: older\nreleases let it attend to the "
            "left alone, and give other vectors without a word."
        )
    return text


_LOADING = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["a text", "another"])
```"""


def _choosing(student: Student, entries: Sequence[str]) -> str:
    widths = {entry: width_of(entry, student.head_widths) for entry in entries}
    rows = [(f"`{entry}`", str(widths[entry]), f"`{dense_folder(entry)}`") for entry in entries]
    return f"""## Other widths

Every head is in the folder, and `modules.json` names the one that is used.

{table(("head", "width", "folder"), rows)}

To use another for good, write its folder into `modules.json` in the place of
`{dense_folder(entries[0])}`. To use it for now:

```python
model[2] = type(model[2]).load("path/to/this/folder/{dense_folder(entries[-1])}").to(model.device)
```

`SentenceTransformer(folder, truncate_dim=N)` keeps the first N columns of a head; give `encode`
`normalize_embeddings=True` then."""


def _onnx(student: Student, entries: Sequence[str]) -> str:
    names = ", ".join(f"`{plain_name(entry)}`" for entry in entries)
    prompt = repr(student.spec.prompt) if student.spec.prompt else ""
    first = f'{prompt} "a text"'.strip()
    second = f'{prompt} "another"'.strip()
    return f"""## ONNX

`onnx/model.onnx` gives unit-length vectors ({names}) of any number of texts:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({student.spec.max_tokens})
tokenizer.enable_padding(pad_id={student.tokenizer.pad_id})
rows = tokenizer.encode_batch([{first}, {second}])
session = onnxruntime.InferenceSession("onnx/model.onnx")
(vectors,) = session.run(["{plain_name(entries[0])}"], {{
    "input_ids": np.array([row.ids for row in rows]),
    "attention_mask": np.array([row.attention_mask for row in rows]),
}})
```"""
