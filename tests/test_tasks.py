"""The figures of tasks against their definitions, written here once more in float64."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tasks import write_classification, write_lines, write_retrieval, write_sts, write_table

from student.evaluation import retrieval
from student.evaluation.instructions import spread
from student.evaluation.retrieval import DOCUMENTS
from student.evaluation.sts import DRAWS, bootstrap, spearman
from student.evaluation.task_spec import Kind, Score, Task, TaskSpec
from student.evaluation.tasks import load, measure, named_by, read, texts_to_encode, with_shares


def task(kind: Kind, path: Path, **fields: object) -> Task:
    spec = TaskSpec.model_validate({"name": "t", "kind": kind, "path": str(path), **fields})
    return load(spec, Path())


def hashed(texts: Sequence[str], role: str = "", width: int = 16) -> np.ndarray:
    """Vectors by the words of a text: each word has a fixed random direction."""
    rows = []
    for text in texts:
        seeds = [sum(ord(c) * 31**i for i, c in enumerate(word)) % 2**32 for word in text.split()]
        words = [np.random.default_rng(seed).standard_normal(width) for seed in seeds]
        rows.append(np.sum(words, axis=0))
    return np.array(rows, np.float32)


def embed(texts: Sequence[str], role: str) -> dict[str, np.ndarray]:
    return {"words": hashed(texts), "few": hashed(texts, width=5)}


def by_vector(scores: Sequence[Score], measure: str) -> dict[str, Score]:
    return {score.vector: score for score in scores if score.measure == measure}


def ranks(values: Sequence[float]) -> list[float]:
    """From 1; of equal values each has the mean of their places."""
    return [
        sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values
    ]


def test_sts_is_spearmans_correlation_of_cosines_and_scores(tmp_path: Path) -> None:
    read_in = task("sts", write_sts(tmp_path / "pairs.csv"))
    found = by_vector(read_in.measure(embed, embed, ("",)), "spearman")
    first, second = read_in.texts()["texts"][:24], read_in.texts()["texts"][24:]
    one, other = hashed(first).astype(float), hashed(second).astype(float)
    cosines = [
        float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)) for a, b in zip(one, other, strict=True)
    ]
    scores = [len(set(a.split()) & set(b.split())) / 2 for a, b in zip(first, second, strict=True)]
    expected = np.corrcoef(ranks(cosines), ranks(scores))[0, 1]
    assert found["words"].score == pytest.approx(expected, abs=1e-6)
    assert 0 < found["words"].standard_error < 0.3


def test_a_correlation_has_the_standard_error_that_its_sampling_has() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 200))
    y = 0.7 * x + rng.standard_normal((300, 200))
    of_samples = np.std([spearman(a, b) for a, b in zip(x, y, strict=True)])
    found = np.mean([bootstrap(a, b) for a, b in zip(x[:10], y[:10], strict=True)])
    assert DRAWS == 200
    assert found == pytest.approx(of_samples, rel=0.2)
    assert bootstrap(x[0], y[0]) == bootstrap(x[0], y[0])
    assert spearman(x[0], np.zeros(200)) == 0


def dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log(place + 1, 2) for place, gain in enumerate(gains, 1))


def by_hand(
    queries: np.ndarray, documents: dict[str, np.ndarray], relevance: dict[int, dict[str, int]]
) -> tuple[float, float]:
    """nDCG@10 and recall@100 as trec_eval has them: linear gains, ties by id from last to first."""
    ndcg, recall = [], []
    for number, own in relevance.items():
        query = queries[number].astype(float)
        cosine = {
            id_: np.float32(query @ v / np.linalg.norm(query) / np.linalg.norm(v))
            for id_, v in documents.items()
        }
        ranked = sorted(sorted(cosine, reverse=True), key=lambda id_: -round(cosine[id_], 5))
        gains = [max(0, own.get(id_, 0)) for id_ in ranked]
        best = dcg(sorted((max(0, gain) for gain in own.values()), reverse=True)[:10])
        ndcg.append(dcg(gains[:10]) / best if best else 0)
        right = {id_ for id_, gain in own.items() if gain > 0}
        recall.append(len(right & set(ranked[:100])) / len(right) if right else 0)
    return float(np.mean(ndcg)), float(np.mean(recall))


def many(folder: Path) -> tuple[Task, Any]:
    """A random collection: graded and negative judgements, equal documents, one without a text."""
    rng = np.random.default_rng(5)
    words = [f"w{i}" for i in range(40)]
    texts = {f"d{i}": " ".join(rng.choice(words, 4)) for i in range(180)}
    for i in range(0, 60, 2):
        texts[f"d{i + 1}"] = texts[f"d{i}"]
    asked = [" ".join(rng.choice(words, 3)) for _ in range(25)]
    write_lines(
        folder / "corpus.jsonl",
        [*({"_id": i, "title": "", "text": t} for i, t in texts.items()), {"_id": "z", "text": ""}],
    )
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": t} for i, t in enumerate(asked)])
    relevance = {
        i: {f"d{j}": int(rng.integers(-1, 4)) for j in rng.choice(180, 20, replace=False)}
        for i in range(24)
    }
    relevance[3] = {"d5": 0}
    relevance[4]["z"] = 1
    rows = [(q, d, n) for q, own in relevance.items() for d, n in own.items()]
    write_table(folder / "qrels" / "test.tsv", [("query-id", "corpus-id", "score"), *rows])
    vectors = {i: hashed([t])[0].astype(float) for i, t in texts.items()}
    return task("retrieval", folder), (hashed(asked), vectors, relevance)


def test_retrieval_has_the_figures_of_trec_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Documents come in pieces that no equal ones share, and the answer is of all of them.
    monkeypatch.setattr(retrieval, "_CHUNK", 37)
    read_in, (queries, documents, relevance) = many(tmp_path)
    scores = read_in.measure(embed, embed, ("",))
    ndcg, recall = by_hand(queries, documents, relevance)
    assert by_vector(scores, "ndcg@10")["words"].score == pytest.approx(ndcg, abs=1e-6)
    assert by_vector(scores, "recall@100")["words"].score == pytest.approx(recall, abs=1e-6)
    assert 0.05 < ndcg < 0.9
    assert 0.05 < recall < 0.9


def test_retrieval_agrees_with_pytrec_eval(tmp_path: Path) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="it comes with the extra mteb")
    read_in, (queries, documents, relevance) = many(tmp_path)
    run: dict[str, dict[str, float]] = {}
    ids = list(documents)
    rows = np.stack([documents[i] / np.linalg.norm(documents[i]) for i in ids])
    for i in relevance:
        scores = (rows @ (queries[i] / np.linalg.norm(queries[i]))).astype(np.float32)
        run[str(i)] = {id_: round(float(s), 5) for id_, s in zip(ids, scores, strict=True)}
    judge = pytrec_eval.RelevanceEvaluator(
        {str(i): own for i, own in relevance.items()}, {"ndcg_cut.10", "recall.100"}
    )
    each = judge.evaluate(run)
    found = read_in.measure(embed, embed, ("",))
    for name, theirs in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100")):
        expected = np.mean([figures[theirs] for figures in each.values()])
        assert by_vector(found, name)["words"].score == pytest.approx(expected, abs=1e-6)


def test_the_standard_error_of_retrieval_is_that_of_a_mean_over_queries(tmp_path: Path) -> None:
    read_in, (queries, documents, relevance) = many(tmp_path)
    found = by_vector(read_in.measure(embed, embed, ("",)), "ndcg@10")["words"]
    each = [by_hand(queries, documents, {i: own})[0] for i, own in relevance.items()]
    variance = sum((x - np.mean(each)) ** 2 for x in each) / (len(each) - 1)
    assert found.standard_error == pytest.approx(math.sqrt(variance / len(each)), abs=1e-6)


def test_a_probe_learns_what_is_linear_and_nothing_from_noise(tmp_path: Path) -> None:
    read_in = task("classification", write_classification(tmp_path))

    def either(texts: Sequence[str], role: str) -> dict[str, np.ndarray]:
        noise = np.random.default_rng(0).standard_normal((len(texts), 8)).astype(np.float32)
        return {"words": hashed(texts, width=64), "noise": noise}

    found = by_vector(read_in.measure(either, either, ("",)), "accuracy")
    assert found["words"].score > 0.9
    assert found["noise"].score < 0.6
    p = found["noise"].score
    assert found["noise"].standard_error == pytest.approx(math.sqrt(p * (1 - p) / 30))
    assert found == by_vector(read_in.measure(either, either, ("",)), "accuracy")


def test_instructions_stand_before_queries_alone_and_before_all_other_texts(
    tmp_path: Path,
) -> None:
    def seen_by(kind: Kind, path: Path) -> dict[str, set[str]]:
        seen: dict[str, set[str]] = {}

        def watching(texts: Sequence[str], role: str) -> dict[str, np.ndarray]:
            seen.setdefault(role, set()).update(texts)
            return {"words": hashed(texts)}

        read_in = task(kind, path, instruction="say: ", paraphrases=("ask: ",))
        scores = read_in.measure(watching, watching, read_in.spec.instructions)
        assert {score.instruction for score in scores} == {"say: ", "ask: "}
        encoded = texts_to_encode([read_in])
        assert encoded == sum(
            len(texts) * (2 if role == read_in.instructed else 1)
            for role, texts in read_in.texts().items()
        )
        return seen

    seen = seen_by("retrieval", write_retrieval(tmp_path / "r"))
    assert all(text.startswith(("say: ", "ask: ")) for text in seen["queries"])
    assert not any(text.startswith(("say: ", "ask: ")) for text in seen[DOCUMENTS])
    for kind, path in (
        ("sts", write_sts(tmp_path / "s.tsv")),
        ("classification", write_classification(tmp_path / "c")),
    ):
        (texts,) = seen_by(kind, path).values()  # type: ignore[arg-type]
        assert all(text.startswith(("say: ", "ask: ")) for text in texts)


def test_the_spread_over_instructions_is_that_of_the_scores(tmp_path: Path) -> None:
    def shaken(texts: Sequence[str], role: str) -> dict[str, np.ndarray]:
        return {"few": hashed(texts, width=3)}

    several = task("sts", write_sts(tmp_path / "s.csv"), paraphrases=("the ", "a b ", "c d e f "))
    plain = task("sts", write_sts(tmp_path / "s.csv"))
    rows = measure([several], shaken, None)
    (found,) = spread([*rows, *({**row, "task": "x"} for row in measure([plain], shaken, None))])
    scores = [row["score"] for row in rows]
    assert (found["instructions"], found["task"]) == (4, "t")
    assert found["mean"] == pytest.approx(np.mean(scores))
    assert found["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert (found["min"], found["max"]) == (min(scores), max(scores))
    assert found["sd"] > 0


@pytest.mark.parametrize(("whole", "share"), [(0.8, 0.5), (0.0, None), (-0.1, None)])
def test_there_is_no_share_of_a_score_that_is_not_above_0(
    whole: float, share: float | None
) -> None:
    row = {"measure": "spearman", "documents_of": None, "share": None}
    rows = [{**row, "of": "student", "score": 0.4}, {**row, "of": "left", "score": whole}]
    assert [found["share"] for found in with_shares(rows)] == [share, None]


def test_a_tasks_file_names_tasks_columns_and_instructions(tmp_path: Path) -> None:
    write_table(
        tmp_path / "in" / "p.csv", [("a", "b", "s"), ("the cat", "a cat", 5), ("x", "y", 1)]
    )
    write_retrieval(tmp_path / "in" / "r")
    (tmp_path / "tasks.toml").write_text(
        """
        [[tasks]]
        name = "pairs"
        kind = "sts"
        path = "in/p.csv"
        columns = { first = "a", second = "b", score = "s" }

        [[tasks]]
        name = "search"
        kind = "retrieval"
        path = "in/r"
        instruction = "find: "
        paraphrases = ["look for: ", "find: "]
        """
    )
    pairs, search = read(tmp_path / "tasks.toml")
    assert pairs.texts() == {"texts": ["the cat", "x", "a cat", "y"]}
    assert search.spec.instructions == ("find: ", "look for: ")
    assert named_by("retrieval", tmp_path / "in" / "r").spec.name == "r"


def test_the_tasks_that_the_docs_show_are_tasks() -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    specs = [TaskSpec.model_validate(each) for each in tomllib.loads(example)["tasks"]]
    assert [spec.kind for spec in specs] == ["sts", "retrieval", "classification"]
    assert len(specs[1].instructions) == 3
    for field in TaskSpec.model_fields:
        assert f"{field} = " in example
