"""A trained student as a sentence-transformers folder, which loads with no code of ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from student.durable import replace_folder
from student.jasper import write as write_jasper
from student.model import POOLED, Student
from student.spec import StudentError
from student.stages import head_of, width_of


def export(student: Student, out: Path, *, head: str, record: Mapping[str, Any]) -> None:
    """Write transformer, mean pooling, the head as a Dense layer, and normalisation.

    `head` is a head's name, the first columns of one (`fc1[:512]`), or `pooled` for the body alone.
    `record` is the stage's `run.json`, from which the card says whose vectors it was trained on.

    Raises:
        StudentError: no such head, an untrained one, or `out` exists and is not an empty folder.
        StageError: more columns than the head has.
    """
    trained = [*record["trained_heads"], POOLED]
    if head not in trained and head_of(head)[0] not in trained:
        what = "has not trained" if head_of(head)[0] in student.heads else "has no head"
        raise StudentError(f"the run {what} {head!r}; it can give {', '.join(trained)}")
    if head != POOLED:
        width_of(head, student.head_widths)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudentError(f"{out} is not an empty folder; give another one to export to")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        text, folder = Path(scratch, "text"), Path(scratch, "export")
        student.text.save_pretrained(text)  # type: ignore[operator]
        student.tokenizer.save(text)
        model = _modules(student, text, head)
        model.save_pretrained(str(folder), create_model_card=False)
        # As it is in the student, whatever the library made of it.
        student.tokenizer.save(folder)
        (folder / "README.md").write_text(_card(student, head, record), encoding="utf-8")
        replace_folder(folder, out)


def export_jasper(student: Student, out: Path, *, dtype: str, record: Mapping[str, Any]) -> None:
    """Write all trained heads, text and image side in the released checkpoint's layout.

    Raises:
        StudentError: the layout cannot hold the student, or `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudentError(f"{out} is not an empty folder; give another one to export to")
    heads = [head for head in student.heads if head in record["trained_heads"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch, "export")
        write_jasper(student, folder, heads, getattr(torch, dtype))
        (folder / "README.md").write_text(_jasper_card(student, heads, record), encoding="utf-8")
        replace_folder(folder, out)


def _modules(student: Student, text: Path, head: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )

    modules: list[Any] = [
        Transformer(str(text), max_seq_length=student.spec.max_tokens),
        Pooling(student.hidden, pooling_mode="mean"),
    ]
    if head != POOLED:
        linear: Any = student.heads[head_of(head)[0]]
        width = width_of(head, student.head_widths)
        modules.append(
            Dense(
                student.hidden,
                width,
                activation_function=torch.nn.Identity(),
                init_weight=linear.weight[:width].detach().cpu().clone(),
                init_bias=linear.bias[:width].detach().cpu().clone(),
            )
        )
        modules.append(Normalize())
    prompt = student.spec.prompt
    return SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts={"default": prompt} if prompt else None,
        default_prompt_name="default" if prompt else None,
    )


def _card(student: Student, head: str, record: Mapping[str, Any]) -> str:
    width = student.hidden if head == POOLED else width_of(head, student.head_widths)
    normalised = "raw" if head == POOLED else "unit-length"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, distillation]
---

# A distilled embedding model

Gives {normalised} vectors {width} wide (`{head}`), from at most {student.spec.max_tokens} tokens.
{_origin(student, record)}
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["a text", "another"])
```
"""


def _jasper_card(student: Student, heads: Sequence[str], record: Mapping[str, Any]) -> str:
    widths = ", ".join(f"{student.head_widths[head]} (`{head}`)" for head in heads)
    return f"""---
pipeline_tag: sentence-similarity
tags: [feature-extraction, distillation, multimodal]
---

# A distilled embedding model of texts and images

Gives raw vectors {widths} wide, from at most {student.spec.max_tokens} tokens or one image. The
folder has the layout of the released Jasper checkpoint; the code that reads it is not in it.
{_origin(student, record)}"""


def _origin(student: Student, record: Mapping[str, Any]) -> str:
    """Where the model is from, and whose licences come with it."""
    teachers = "\n".join(
        f"| {block['teacher']} | {block['repository']} | {block['width']} | {block['licence']} |"
        for block in record["blocks"]
    )
    vision = student.spec.vision
    seen = f", its image side from `{vision.init or student.spec.init}`" if vision else ""
    return f"""It started from `{student.spec.init}`{seen} and was distilled, in stages up to
{record["number"]}, from a cache (`{record["cache"]}`) of the vectors of:

| teacher | repository | width | licence |
|---|---|---|---|
{teachers}

The licences of the teachers and of the initialisation may bind what this model is used for.
"""
