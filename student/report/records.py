"""What a report reads and holds, as checked plain data. Parts that are missing are empty.

`Evaluation` is a stage's evaluation.json, `Recall` its recall.json, `Sweep` a sweep's results.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from student.evaluation.asymmetric import ALL_TEACHERS
from student.run import keeps_text_side

Figures = dict[str, dict[str, dict[str, float | None]]]
"""By vector, by teacher, by measure."""


class Facts(BaseModel):
    """Data that a newer program may have added to, and that nothing here changes."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Task(Facts):
    """One score on one task: the student's or a teacher's."""

    task: str
    kind: str = ""
    measure: str = ""
    vector: str = ""
    of: str = "student"
    score: float
    standard_error: float | None = None
    instruction: str = ""
    asymmetric: bool = False
    documents_of: str | None = None
    """Where it is asymmetric: the teacher whose vectors the student's queries were sought in."""
    share: float | None = None
    """The score over the teachers' own."""


class Evaluation(Facts):
    """What a student kept of its teachers on held-out texts, and what it scores on tasks."""

    stage: int | None = None
    rows: int = 0
    widths: dict[str, int] = Field(default_factory=dict)
    retention: Figures = Field(default_factory=dict)
    asymmetric: Figures = Field(default_factory=dict)
    tasks: list[Task] = Field(default_factory=list)

    @property
    def teachers(self) -> list[str]:
        """All teachers together first, where there are several."""
        found = dict.fromkeys(name for each in self.retention.values() for name in each)
        return sorted(found, key=lambda name: name != ALL_TEACHERS)


class Recall(Facts):
    """How often images find their captions first, and captions their images."""

    pairs: int = 0
    captions: int = 0
    at: list[int] = Field(default_factory=list)
    recall: dict[str, dict[str, list[float]]] = Field(default_factory=dict)


class Curve(Facts):
    """One figure over the steps of a stage."""

    steps: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)


class Stage(Facts):
    """One stage of a run. `record` is its run.json, empty while the stage is not done."""

    number: int
    folder: Path
    finished: bool
    record: dict[str, Any] = Field(default_factory=dict)
    curves: dict[str, Curve] = Field(default_factory=dict)
    evaluation: Evaluation | None = None
    recall: Recall | None = None

    @property
    def model(self) -> Path:
        """The student after the stage."""
        return self.folder / "model"


class Run(Facts):
    """A run: its stages in their order, at least one of them finished."""

    name: str
    path: Path
    stages: list[Stage]

    @property
    def last(self) -> Stage:
        """The last finished stage."""
        return next(stage for stage in reversed(self.stages) if stage.finished)

    @property
    def evaluated(self) -> Stage | None:
        """The stage whose evaluation tells what the run's student keeps: the last finished one, or
        the one before while a stage left the text side as it was; None if it was not measured."""
        for stage in reversed(self.stages):
            if not stage.finished:
                continue
            if stage.evaluation is not None:
                return stage
            if not keeps_text_side(stage.record):
                return None
        return None


Measured = tuple[Run, Evaluation]
"""A run that was evaluated."""


class Statistic(Facts):
    """A measure over the seeds of an arm, and how it differs from the baseline's."""

    mean: float
    sd: float | None = None
    values: list[float] = Field(default_factory=list)
    difference: float | None = None
    p: float | None = None
    significant: bool = False


class Arm(Facts):
    """One arm of a sweep: what it changes, and its figures by vector, teacher and measure."""

    arm: str
    settings: dict[str, Any] = Field(default_factory=dict)
    runs: dict[str, str] = Field(default_factory=dict)
    problems: dict[str, str] = Field(default_factory=dict)
    """By seed: why there is no run."""
    figures: dict[str, dict[str, dict[str, Statistic]]] = Field(default_factory=dict)


class Sweep(Facts):
    """An ablation: arms over the same seeds, compared with one of them."""

    path: Path = Path()
    sweep: str = ""
    question: str = ""
    cache: str = ""
    baseline: str = ""
    seeds: list[int] = Field(default_factory=list)
    rows: int = 0
    arms: list[Arm]


class Neighbour(Facts):
    """A held-out text near another one. `agrees`: the other side has it among its nearest too."""

    row: int
    text: str
    cosine: float
    agrees: bool


class Sample(Facts):
    """A held-out text, with its nearest ones as the teachers see it and as the student does."""

    row: int
    text: str
    teacher: list[Neighbour]
    student: list[Neighbour]


class Density(Facts):
    """Pairs of texts, counted by what a teacher (across) and the student (up) say of them.

    `counts[i][j]` is the number of pairs whose teacher cosine lies in the i-th of equal bins from
    `teacher_range`, and whose student cosine lies in the j-th from `student_range`.
    """

    teacher: str
    vector: str
    counts: list[list[int]]
    teacher_range: tuple[float, float]
    student_range: tuple[float, float]
    spearman: float
    pairs: int


class Look(Facts):
    """What the student's own vectors of held-out texts show; `missing` says why they do not."""

    run: str
    rows: int = 0
    vector: str = ""
    densities: list[Density] = Field(default_factory=list)
    samples: list[Sample] = Field(default_factory=list)
    missing: str = ""


class Report(Facts):
    """Everything that a page tells."""

    runs: list[Run]
    sweeps: list[Sweep]
    looks: list[Look] = Field(default_factory=list)
