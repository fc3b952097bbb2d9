"""The tasks' texts as a corpus, with the recipe of a cache of the teachers' vectors. No torch.

Texts are encoded as they are: nothing is cut, shuffled, held out or taken for a near duplicate. Of
equal texts one is kept, whose vector is that of all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from student.durable import refuse_full
from student.evaluation.task_spec import Task
from student.evaluation.tasks import source_of
from teacher_cache.format import Block, teacher_path

RECIPE = "recipe.toml"


def write(folder: Path, tasks: Sequence[Task], blocks: Sequence[Block], cache: Path) -> Path:
    """Write a JSONL file for each task and role, and the recipe; give the recipe's path.

    `blocks` are the run's teachers, `cache` the one it was trained from, in which fitted teachers
    lie. Texts behind an instruction are given without it: it becomes the teachers' prompt.

    Raises:
        StudentError: the folder is not empty.
    """
    refuse_full(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    prompts: dict[str, str] = {}
    for task in tasks:
        for role, texts in task.texts().items():
            source = source_of(task, role)
            lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
            (folder / f"{source}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            sources.append({"name": source, "path": f"{source}.jsonl"})
            if role == task.instructed and task.spec.instruction:
                prompts[source] = task.spec.instruction
    names = ", ".join(task.spec.name for task in tasks)
    parts = [
        *_table("", {"purpose": f"the texts of {names}, under a student's teachers"}),
        *(line for source in sources for line in _table("[[corpus.sources]]", source)),
        *(line for b in blocks for line in _table("[[teachers]]", _teacher(b, prompts, cache))),
    ]
    recipe = folder / RECIPE
    recipe.write_text("\n".join(parts), encoding="utf-8")
    return recipe


def _teacher(block: Block, prompts: Mapping[str, str], cache: Path) -> dict[str, Any]:
    """The recipe's entry that gives this very teacher, with the tasks' prompts."""
    folder = Path(block.repository).expanduser()
    if block.fitted:
        folder = teacher_path(cache, block.teacher)
    path = str(folder.resolve()) if folder.is_dir() else block.repository
    return {
        "name": block.teacher,
        "encoder": block.encoder,
        "path": path,
        "revision": block.revision,
        "width": block.width,
        "max_tokens": block.max_tokens,
        "dtype": block.dtype,
        "licence": block.licence,
        "prompts": {"default": block.prompts.get("default", ""), **prompts},
    }


def _table(header: str, values: Mapping[str, Any]) -> list[str]:
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    return [*([header] if header else []), *lines, ""]


def _toml(value: str | int | Mapping[str, str]) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml(key)} = {_toml(text)}" for key, text in value.items())
        return f"{{ {inner} }}"
    return json.dumps(value, ensure_ascii=False)
