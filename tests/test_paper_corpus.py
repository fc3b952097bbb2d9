"""The paper's recipe gives the paper's corpus, here from local files of the same schemas."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.recipe import Recipe, load
from data.corpus import Corpus, CorpusSpec, Text
from student.spec import StudentSpec
from teacher_cache.teachers import resolve

RECIPE = Path(__file__).parent.parent / "recipes" / "jasper-8m.toml"
WORDS = [f"word{i}" for i in range(2000)]
DOCUMENTS = 700
ROWS = 300


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(RECIPE)[0]


def sentence(rng: random.Random, end: str = ".") -> str:
    return " ".join(["The", *rng.choices(WORDS, k=rng.randint(4, 20))]) + end


def write_fineweb_edu(folder: Path) -> None:
    """Two files with all of its columns; the documents have 10 to 70 sentences in paragraphs."""
    rng = random.Random(1)
    folder.mkdir()
    for number in range(2):
        rows = []
        for i in range(DOCUMENTS // 2):
            lines = [
                " ".join(sentence(rng) for _ in range(rng.randint(2, 7)))
                for _ in range(rng.randint(5, 10))
            ]
            rows.append(
                {
                    "text": "\n".join(lines),
                    "id": f"<urn:uuid:{number}-{i}>",
                    "dump": "CC-MAIN-2024-10",
                    "url": f"https://example.com/{i}",
                    "file_path": "s3://commoncrawl/x.warc.gz",
                    "language": "en",
                    "language_score": 0.97,
                    "token_count": 700,
                    "score": 3.1,
                    "int_score": 3,
                }
            )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number:03d}_00000.parquet")


def write_questions(path: Path, fields: tuple[str, ...], rng: random.Random) -> None:
    """Rows such as the file has: a bare list, or a query with lists of texts; one is bad."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        for i in range(ROWS):
            question, answer, other = sentence(rng, "?"), sentence(rng), sentence(rng)
            row: Any = {"query": question, "pos": [answer], "neg": [other]}
            if fields == ("text",):
                row = [question, answer, other] if "AllNLI" in path.name else [question, answer]
            file.write(json.dumps(["", answer] if i == 5 else row) + "\n")


@pytest.fixture(scope="module", params=["path", "dataset"])
def local(
    recipe: Recipe, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    """This very recipe's corpus, but for where the sources lie and how many texts there are."""
    folder = tmp_path_factory.mktemp("paper")
    assert recipe.corpus is not None
    write_fineweb_edu(folder / "fineweb-edu")
    rng = random.Random(2)
    sources = []
    for source in recipe.corpus.sources:
        if source.dataset is not None:
            place: dict[str, Any] = {"dataset": "./fineweb-edu", "subset": None}
            if request.param == "path":
                place = {"path": "fineweb-edu", "dataset": None, "subset": None}
        else:
            assert source.path is not None
            place = {"path": Path(source.path).name}
            write_questions(folder / place["path"], source.columns, rng)
        sources.append({**source.model_dump(), **place})
    spec = {**recipe.corpus.model_dump(), "sources": sources, "texts": 2000}
    return Corpus(CorpusSpec.model_validate(spec), folder)


@pytest.fixture(scope="module")
def texts(local: Corpus) -> list[Text]:
    return list(local)


def test_the_recipe_is_the_papers(recipe: Recipe) -> None:
    assert recipe.corpus is not None
    assert recipe.corpus.texts == 8_000_000
    assert recipe.corpus.texts * recipe.corpus.held_out == 20_000
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    assert weights.pop("fineweb-edu") == 0.8
    assert sum(weights.values()) == pytest.approx(0.2)
    assert [(s.cut, s.sentences) for s in recipe.corpus.sources if s.cut] == [(0.3, (1, 10))]
    assert recipe.corpus.shuffle_words == 0.0008
    assert recipe.student.text_side == StudentSpec()
    assert recipe.stages == {}
    assert [resolve(spec).width for spec in recipe.teachers] == [8192, 4096]


def test_every_file_of_the_recipe_is_in_its_download_command(recipe: Recipe) -> None:
    assert recipe.corpus is not None
    comment = "".join(line for line in RECIPE.read_text().splitlines() if line.startswith("#"))
    paths = [source.path for source in recipe.corpus.sources if source.path]
    assert len(paths) == 8
    for path in paths:
        assert Path(path).name in comment


def test_four_texts_in_five_are_of_documents(local: Corpus, texts: list[Text]) -> None:
    found = Counter(text.source for text in texts)
    assert len(texts) == 2000
    for source in local.spec.sources:
        assert found[source.name] == pytest.approx(2000 * source.weight, abs=12)


def test_rows_are_flattened_and_stay_together(local: Corpus, texts: list[Text]) -> None:
    """A question, then its answers; the row with an empty question is passed over."""
    counts = {name: c for name, c in local.counts.sources.items() if name != "fineweb-edu"}
    assert all(c.skipped == 1 for c in counts.values() if c.read > 6)
    for name, size in (("gooaq", 2), ("msmarco", 3), ("all-nli", 3)):
        rows = [text.text for text in texts if text.source == name]
        assert [text[-1] for text in rows[: 3 * size]] == (["?"] + ["."] * (size - 1)) * 3
        places = [i for i, text in enumerate(texts) if text.source == name]
        assert all(places[i + size - 1] == places[i] + size - 1 for i in range(0, 3 * size, size))


def test_documents_are_cut_as_the_paper_says(local: Corpus, texts: list[Text]) -> None:
    counts = local.counts.sources["fineweb-edu"]
    assert counts.cut / counts.read == pytest.approx(0.3, abs=0.08)
    wholes = [t for t in texts if t.source == "fineweb-edu" and t.text.count(".") >= 11]
    pieces = [t for t in texts if t.source == "fineweb-edu" and t.text.count(".") < 11]
    assert len(wholes) == pytest.approx(0.7 * counts.read, abs=0.15 * counts.read)
    assert len(pieces) > len(wholes)
    assert sum(c.cut for c in local.counts.sources.values()) == counts.cut
