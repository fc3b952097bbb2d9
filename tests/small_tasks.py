"""Small tasks as people keep them: a file of scored pairs, a BEIR folder, texts with labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from small_caches import SENTENCES


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """A CSV file, or TSV by its suffix; the first row is the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def write_lines(path: Path, values: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def write_sts(path: Path, *, pairs: int = 24) -> Path:
    """Pairs of sentences, scored by how many words they share."""
    rows: list[Sequence[object]] = [("sentence1", "sentence2", "score")]
    for i in range(pairs):
        one, other = SENTENCES[7 * i], SENTENCES[(7 * i + 11 * (i % 5) + 1) % len(SENTENCES)]
        rows.append((one, other, len(set(one.split()) & set(other.split())) / 2))
    return write_table(path, rows)


def write_retrieval(
    folder: Path,
    *,
    documents: int = 40,
    queries: int = 12,
    qrels: Mapping[str, Mapping[str, int]] | None = None,
) -> Path:
    """Sentences to be found by their first four words; of each query two documents are relevant."""
    corpus = [{"_id": f"d{i}", "title": "", "text": SENTENCES[9 * i]} for i in range(documents)]
    asked = [
        {"_id": f"q{i}", "text": " ".join(SENTENCES[9 * i].split()[:4])} for i in range(queries)
    ]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", asked)
    if qrels is None:
        qrels = {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1} for i in range(queries)}
    judged = [(query, document, n) for query, own in qrels.items() for document, n in own.items()]
    write_table(folder / "qrels" / "test.tsv", [("query-id", "corpus-id", "score"), *judged])
    return folder


def write_classification(folder: Path, *, each: int = 30) -> Path:
    """Sentences, labelled by who they are about."""
    rows = [(text, " ".join(text.split()[:2])) for text in SENTENCES[::3]]
    write_table(folder / "train.csv", [("text", "label"), *rows[::4][: 2 * each]])
    write_table(folder / "test.csv", [("text", "label"), *rows[1::4][:each]])
    return folder
