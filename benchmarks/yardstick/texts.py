"""What students learn from, and the tasks they never see.

Training texts are English WordNet's definitions and examples, and paragraphs of books and of
Wikipedia in pieces of one to three sentences. The tasks ask for the one right text of some
thousand: the other half of a split sentence, the example of a definition, the definition of an
example. There are two sets of them, `dev` to choose learning rates and recipes by, and `test` to
report; wiki-split and the synsets of either set are in no training text.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from data.augment import cut
from data.corpus import text_id

Split = Literal["train", "dev", "test"]
Group = list[str]
"""Texts that belong together: they are held out together, or trained on together."""

FILES = {
    "oewn": "oewn/oewn.jsonl.gz",
    "books": "standardebooks/paragraphs.jsonl.gz",
    "wikipedia": "wikitext2/paragraphs.jsonl.gz",
    "wiki-split": "wiki-split/wiki-split-eval.jsonl.gz",
}
# Of the synsets with an example: 3,100 for `test` and 1,550 for `dev`.
TEST_SHARE, DEV_SHARE = 0.09, 0.045
SENTENCES = (1, 3)
SEED = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A retrieval task: the document at a query's own place is the right one, and no other."""

    name: str
    queries: list[str]
    documents: list[str]

    @property
    def texts(self) -> list[str]:
        """All of it, to be encoded."""
        return [*self.queries, *self.documents]


@dataclass(frozen=True, slots=True)
class Texts:
    """Groups of training texts in a fixed shuffled order, and the tasks of both sets."""

    groups: list[Group]
    tasks: dict[str, list[Task]]

    @property
    def count(self) -> int:
        """Training texts, one that stands in two groups counted twice."""
        return sum(map(len, self.groups))

    def save(self, folder: Path) -> None:
        """Write `train.jsonl`, a group a line, and `tasks.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": group}) + "\n" for group in self.groups)
        tasks = {name: [asdict(task) for task in found] for name, found in self.tasks.items()}
        (folder / "tasks.json").write_text(json.dumps(tasks) + "\n", encoding="utf-8")


def read_tasks(folder: Path, which: str) -> list[Task]:
    """The tasks of one set, as `Texts.save` wrote them."""
    return [Task(**values) for values in json.loads((folder / "tasks.json").read_text())[which]]


def split_of(synset: Mapping[str, Any]) -> Split:
    """Where a synset goes, its definition with all its examples: by the hash of its id alone.

    One without an example makes no task, and is trained on.
    """
    if not synset["examples"]:
        return "train"
    place = _draw(synset["id"]) / 2**64
    if place < TEST_SHARE:
        return "test"
    return "dev" if place < TEST_SHARE + DEV_SHARE else "train"


def read(corpora: Path, *, queries: int, dev_queries: int) -> Texts:
    """Read the corpora and split them; `queries` is the most that a task has.

    Raises:
        SystemExit: a corpus is missing.
    """
    synsets = list(_rows(corpora, "oewn"))
    counts = {"test": queries, "dev": dev_queries}
    tasks = _split_sentences(list(_rows(corpora, "wiki-split")), counts)
    for which, count in counts.items():
        tasks[which] += _synset_tasks([s for s in synsets if split_of(s) == which], count)
    unseen = {_folded(text) for found in tasks.values() for task in found for text in task.texts}
    groups: list[Group] = [
        [synset["definition"], *synset["examples"]]
        for synset in synsets
        if split_of(synset) == "train"
    ]
    for source in ("books", "wikipedia"):
        for row in _rows(corpora, source):
            groups.append(cut(row["text"], text_id(row["text"]), SENTENCES, SEED))
    # The same words may stand in another synset or article too.
    groups = [[text for text in group if _folded(text) not in unseen] for group in groups]
    return Texts(_shuffled(filter(None, groups)), tasks)


def _split_sentences(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> Any:
    pairs = sorted((tuple(row["simple"]) for row in rows), key=lambda pair: _draw(pair[0]))
    found = {}
    pairs = _distinct(pairs)
    for which, count in counts.items():
        chosen, pairs = pairs[:count], pairs[count:]
        found[which] = [_task("first half → second half", chosen)]
    return found


def _synset_tasks(synsets: Sequence[Mapping[str, Any]], count: int) -> list[Task]:
    chosen = sorted(synsets, key=lambda synset: _draw(synset["id"]))
    pairs = _distinct([(synset["definition"], synset["examples"][0]) for synset in chosen])[:count]
    return [
        _task("definition → example", pairs),
        _task("example → definition", [(example, definition) for definition, example in pairs]),
    ]


def _distinct(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs none of whose texts came before: two equal documents would both be right."""
    seen: set[str] = set()
    found = []
    for pair in pairs:
        folded = set(map(_folded, pair))
        if len(folded) == 2 and not folded & seen:
            seen |= folded
            found.append(pair)
    return found


def _task(name: str, pairs: Sequence[tuple[str, str]]) -> Task:
    return Task(name, [query for query, _ in pairs], [document for _, document in pairs])


def _shuffled(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (_draw(group[0]), group))


def _draw(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(), SEED)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def fingerprints(corpora: Path) -> dict[str, str]:
    """What tells the files of the corpora from others.

    Raises:
        SystemExit: one is missing.
    """
    return {name: xxhash.xxh3_128_hexdigest(_file(corpora, name).read_bytes()) for name in FILES}


def _file(corpora: Path, name: str) -> Path:
    path = corpora / FILES[name]
    if not path.is_file():
        raise SystemExit(
            f"--corpora {corpora} has no {FILES[name]}; expected {', '.join(FILES.values())}"
        )
    return path


def _rows(corpora: Path, name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(_file(corpora, name), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
