"""A student behind mteb's protocol, on a real task of mteb whose data is local."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_caches import SENTENCES

from student.encoding import encode
from student.evaluation import mteb_model
from student.evaluation.sts import spearman
from student.evaluation.task_spec import TaskError
from student.model import create
from student.spec import StudentSpec

SPEC = StudentSpec(init="-", reduced_heads={"fc2": 6}, max_tokens=24)
INSTALLED = importlib.util.find_spec("mteb") is not None


@pytest.mark.skipif(INSTALLED, reason="mteb is installed")
def test_without_mteb_one_line_says_what_to_install() -> None:
    with pytest.raises(TaskError, match=r"pip install 'jasper-distill\[mteb\]'"):
        mteb_model.find(["STS12"])


@pytest.mark.skipif(not INSTALLED, reason="it comes with the extra mteb")
def test_a_task_that_mteb_has_not_is_refused() -> None:
    with pytest.raises(TaskError, match=r"mteb has no task 'STS99'"):
        mteb_model.find(["STS99"])


def pairs() -> tuple[list[str], list[str], list[float]]:
    first, second = SENTENCES[:200:8], SENTENCES[3:203:8]
    shared = [len(set(a.split()) & set(b.split())) for a, b in zip(first, second, strict=True)]
    return first, second, [float(count) for count in shared]


def local_task(*, there: bool = True) -> Any:
    """A task of similarity whose pairs are made here: nothing is fetched."""
    from datasets import Dataset, DatasetDict
    from mteb import TaskMetadata
    from mteb.abstasks import AbsTaskSTS

    class Local(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalSTS",
            description="sentences made here",
            dataset={"path": "local", "revision": "1"},
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 10

        def load_data(self, *_: Any, **__: Any) -> None:
            if not there:
                raise ConnectionError("no network")
            first, second, scores = pairs()
            rows = {"sentence1": first, "sentence2": second, "score": scores}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
            self.data_loaded = True

    return Local()


@pytest.mark.skipif(not INSTALLED, reason="it comes with the extra mteb")
@pytest.mark.filterwarnings("ignore")  # other people's
def test_a_local_task_of_mteb_is_measured_without_a_network(small_encoder: Path) -> None:
    student = create(SPEC, small_encoder, 20, seed=0)
    encoded: list[int] = []
    task = local_task()
    mteb_model.fetch([task])
    rows = mteb_model.measure([task], student, ["fc1", "fc2"], encoded.append)
    assert [row["vector"] for row in rows] == ["fc1", "fc2"]
    first, second, scores = pairs()
    assert sum(encoded) == 2 * 2 * len(first)
    for row in rows:
        assert (row["task"], row["kind"], row["of"]) == ("LocalSTS", "mteb", "student")
        assert row["measure"] == "cosine_spearman"
        one, other = (
            encode(student, texts, [row["vector"]])[row["vector"]].astype(np.float64)
            for texts in (first, second)
        )
        cosines = (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
        assert row["score"] == pytest.approx(spearman(cosines, np.array(scores)), abs=1e-4)


@pytest.mark.skipif(not INSTALLED, reason="it comes with the extra mteb")
@pytest.mark.filterwarnings("ignore")
def test_data_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(TaskError, match=r"LocalSTS cannot be had: ConnectionError: no network"):
        mteb_model.fetch([local_task(there=False)])
