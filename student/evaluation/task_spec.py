"""What a task is, to who reads its files, who measures on it, and who writes it down. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from teacher_cache.format import is_folder_name

if TYPE_CHECKING:
    from student.encoding import FloatArray

Kind = Literal["sts", "retrieval", "classification"]


class TaskError(Exception):
    """A task that cannot be measured as asked: one line that says what, where, and what to do."""


class TaskSpec(BaseModel):
    """One task: local files, and the instructions that its texts are encoded under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what figures and errors call it")
    kind: Kind = Field(description="sts, retrieval or classification")
    path: str = Field(description="a file (sts) or a folder (retrieval, classification)")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="columns of other names: sts has first, second and score, classification text "
        "and label",
    )
    split: str = Field(
        "test", description="retrieval: of qrels/SPLIT.tsv; classification: the file tested on"
    )
    instruction: str = Field(
        "", description="put before every text as it stands; of retrieval, before queries alone"
    )
    paraphrases: tuple[str, ...] = Field(
        (), description="the same in other words: the task is measured under each of them too"
    )

    @field_validator("name")
    @classmethod
    def _can_name_a_file(cls, name: str) -> str:
        if not is_folder_name(name):
            raise ValueError("it becomes a file's name: no slashes, no dot in front")
        return name

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instruction and its paraphrases, each once."""
        return tuple(dict.fromkeys((self.instruction, *self.paraphrases)))


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one vector on a task, and its standard error over the task's queries or rows.

    `instruction` is what stood before the texts.
    """

    measure: str
    vector: str
    instruction: str
    score: float
    standard_error: float


Embed = Callable[[Sequence[str], str], Mapping[str, "FloatArray"]]
"""Texts, and the role they have in the task, to vectors by name, each [n, width]."""


class Task(Protocol):
    """A task whose files were read and found good."""

    @property
    def spec(self) -> TaskSpec:
        """What it was read by."""

    @property
    def instructed(self) -> str:
        """The role whose texts stand behind the instruction."""

    def texts(self) -> Mapping[str, Sequence[str]]:
        """All its texts, by role."""

    def measure(self, queries: Embed, documents: Embed, instructions: Sequence[str]) -> list[Score]:
        """The scores of every vector that `queries` gives, under each instruction.

        Only retrieval asks `documents` for vectors, by the names that `queries` gives.
        """
