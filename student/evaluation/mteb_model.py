"""Tasks of MTEB, by name, through the `mteb` package (the extra `mteb`).

A task's data is fetched where it is not at hand; a task whose data is local, or was fetched
before, is measured without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, from_numpy
from torch.nn.functional import normalize

from student.encoding import FloatArray, encode, unit
from student.evaluation.task_spec import TaskError
from student.evaluation.tasks import STUDENT
from student.model import Student


class MtebStudent:
    """One head of a student behind mteb's encoder protocol (mteb 2)."""

    def __init__(
        self, student: Student, head: str, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        from mteb.models import ModelMeta

        self.student = student
        self.head = head
        self.advance = advance
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"jasper-student/{head}"})

    def encode(self, inputs: Any, **_options: Any) -> FloatArray:
        """Unit vectors [n, D] of the texts of an mteb data loader."""
        texts = [text for batch in inputs for text in batch["text"]]
        return unit(encode(self.student, texts, [self.head], advance=self.advance)[self.head])

    def similarity(self, one: Any, other: Any) -> Tensor:
        """The cosines of all rows of one array with all of another."""
        return _unit(one) @ _unit(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Tensor:
        """The cosines of the rows of two arrays, one by one."""
        return (_unit(one) * _unit(other)).sum(-1)


def find(names: Sequence[str]) -> list[Any]:
    """The tasks of MTEB that have these names.

    Raises:
        TaskError: mteb is not installed, or has no such task.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise TaskError(
            "tasks of MTEB need the package mteb, which is not installed: "
            "pip install 'jasper-distill[mteb]'"
        ) from None
    found = []
    for name in names:
        try:
            found.append(mteb.get_task(name))
        except KeyError as error:
            why = str(error.args[0]).removeprefix("KeyError: ")
            raise TaskError(f"mteb has no task {name!r}: {why}") from None
    return found


def fetch(tasks: Sequence[Any]) -> None:
    """Load the data of tasks, from the network where it is not here.

    Raises:
        TaskError: it cannot be had.
    """
    for task in tasks:
        try:
            task.load_data()
        except Exception as error:  # data sets are fetched through several libraries
            raise TaskError(
                f"the data of MTEB's {task.metadata.name} cannot be had: "
                f"{type(error).__name__}: {error}"
            ) from error


def measure(
    tasks: Sequence[Any],
    student: Student,
    heads: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """The main score of each task for each head, in rows like those of `tasks.measure`.

    The tasks' data was fetched. mteb gives no standard error, so it is None.
    """
    import mteb

    rows = []
    for task in tasks:
        for head in heads:
            model: Any = MtebStudent(student, head, advance)
            result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
            (scores,) = result.task_results
            rows.append(
                {
                    "task": task.metadata.name,
                    "kind": "mteb",
                    "measure": task.metadata.main_score,
                    "vector": head,
                    "of": STUDENT,
                    "score": float(scores.get_score()),
                    "standard_error": None,
                    "instruction": "",
                    "asymmetric": False,
                    "documents_of": None,
                    "share": None,
                }
            )
    return rows


def _unit(vectors: Any) -> Tensor:
    rows = vectors if isinstance(vectors, Tensor) else from_numpy(vectors)
    return normalize(rows.float(), dim=-1)
