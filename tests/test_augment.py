"""Documents are cut at sentences, words shuffled, near duplicates dropped, whatever the order."""

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import cut, is_chosen, shuffled
from data.corpus import Corpus, CorpusSpec, is_held_out, text_id
from data.duplicates import near_key
from data.sentences import sentences

PROSE = st.text(st.sampled_from("ab A.!?…\n\t 3\"'”\u2019(),é—"), max_size=80)


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def corpus(folder: Path, rows: list[Any], **spec: Any) -> Corpus:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "rows", "path": "rows.jsonl"}
    for field in ("cut", "sentences"):
        if field in spec:
            source[field] = spec.pop(field)
    return Corpus(CorpusSpec.model_validate({"sources": [source], **spec}), folder)


def document(number: int, count: int) -> str:
    return " ".join(f"This is sentence {i} of document {number}." for i in range(count))


@pytest.mark.parametrize(
    "text",
    [
        "It rained.|The match was called off!|Why?|Nobody knew.",
        "Dr. Smith met Prof. J. R. Jones and Mrs. Brown.|They left.",
        "It costs $3.50 or 2.75 euros.|A 1.5 B model is small.",
        "See Fig. 3, No. 5 and pp. 12-14.|Then turn the page.",
        "She said no.|No. 5 was next.",
        "Use fruit, e.g. Apples, or nuts, i.e. Almonds.|Then bake.",
        "He joined the U.S. Army in Washington, D.C.|Before that he taught.",
        "He joined the U.S. Army.|It was in the U.S.|The year was 1944.|In 1945 he left.",
        "It began at 5 p.m. Monday.|It ended at 9 p.m.|The hall was empty.",
        "Acme Inc. Chairman Lee spoke.|She left Acme Inc.|The firm went on.",
        '"Really?" she asked.|"Yes."|He nodded.',
        "He said “Go.”|Then he left.|(It was late.)|[Nobody came.]|So did I.|We slept.",
        '"Stop!"|"Why should I?"',
        "Wait... what was that?|Well…|It was nothing...|The wind.",
        "What?!|No!!!|Oh.",
        "1. Mix the eggs.|2. Add flour.\n|3. Bake.",
        "It was over in 3.|In 4 days we met.",
        "A heading\n\n|the text of it\nruns on over lines.\n|Next line",
        "He lives in the U.S.\n|Army days are over.",
        "Visit example.com for more.|Read main.py first.",
        "Zwölf Boxkämpfer.|Élan is French.|日本 is Japan.",
        "no end",
    ],
)
def test_sentences_of_english_prose_are_told_apart(text: str) -> None:
    assert split(text.replace("|", " ")) == [part.strip() for part in text.split("|")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It has vitamin C. The rest is water.", 1),
        ("They sell phones. iPhones sell best.", 1),
        ("The President of\nFrance spoke.", 2),
        ("He lives in the U.S. Winters are cold.", 1),
    ],
)
def test_limits_of_the_splitter_are_as_documented(text: str, found: int) -> None:
    assert len(split(text)) == found


@given(PROSE)
@settings(derandomize=True, deadline=None, max_examples=400)
def test_sentences_hold_every_character_but_the_space_between(text: str) -> None:
    spans = list(sentences(text))
    places = [place for span in spans for place in range(*span)]
    assert places == sorted(set(places))
    assert set(range(len(text))) - set(places) <= {i for i, c in enumerate(text) if c.isspace()}
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)


@pytest.mark.parametrize(
    "part", [".", "\n", " ", ". ", ".\n", '."', "A. ", "Dr. ", "\n \n", "(", "x"]
)
def test_a_long_run_of_anything_is_split_at_once(part: str) -> None:
    """It takes milliseconds: in time that grows with the square it would take minutes."""
    text = "x" + part * (200_000 // len(part)) + "x"
    spans = list(sentences(text))
    assert (spans[0][0], spans[-1][1]) == (0, len(text))


@given(PROSE, st.binary(min_size=16, max_size=16), st.integers(1, 4), st.integers(0, 4))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_pieces_are_the_text_in_order_and_of_the_length_asked_for(
    text: str, id_: bytes, shortest: int, more: int
) -> None:
    pieces = cut(text, id_, (shortest, shortest + more), seed=3)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    if len(pieces) == 1:
        assert pieces == [text]
        return
    spans = list(sentences(text))
    starts = [start for start, _ in spans]
    place = 0
    for number, piece in enumerate(pieces):
        place = text.index(piece, place)
        inside = sum(place <= start < place + len(piece) for start in starts)
        assert inside <= shortest + more
        assert inside >= shortest or number == len(pieces) - 1
        place += len(piece)


def test_pieces_have_one_to_ten_sentences_each_as_often() -> None:
    lengths: Counter[int] = Counter()
    for number in range(400):
        text = document(number, 60)
        pieces = cut(text, text_id(text), (1, 10), seed=0)
        assert " ".join(pieces) == text
        lengths.update(len(split(piece)) for piece in pieces[:-1])
    total = sum(lengths.values())
    assert sorted(lengths) == list(range(1, 11))
    for count in lengths.values():
        assert abs(count - total / 10) < 5 * math.sqrt(total * 0.1 * 0.9)


def test_a_document_of_one_sentence_stays_whole(tmp_path: Path) -> None:
    texts = corpus(tmp_path, ["  One sentence only.\n"], cut=1.0)
    assert [text.text for text in texts] == ["  One sentence only.\n"]
    assert texts.counts.sources["rows"].cut == 0


def test_the_share_of_documents_asked_for_is_cut_and_gone(tmp_path: Path) -> None:
    documents = [document(i, 20) for i in range(1000)]
    texts = corpus(tmp_path, documents, cut=0.3)
    kept = [text.text for text in texts]
    counts = texts.counts.sources["rows"]
    assert abs(counts.cut - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)
    assert len(set(documents) - set(kept)) == counts.cut
    assert counts.kept == len(kept) > 1000 + 2 * counts.cut


def test_pieces_of_a_row_are_neighbours_and_on_the_side_of_its_first_text(tmp_path: Path) -> None:
    rows = [[document(2 * i, 12), document(2 * i + 1, 12)] for i in range(200)]
    texts = list(corpus(tmp_path, rows, cut=0.5, held_out=0.3, seed=5))
    assert " ".join(text.text for text in texts) == " ".join(" ".join(row) for row in rows)
    side = {str(i // 2): is_held_out(text_id(rows[i // 2][0]), 0.3, 5) for i in range(400)}
    for text in texts:
        number = int(text.text.split("document ")[1].split(".")[0])
        assert text.held_out == side[str(number // 2)]


def test_only_the_sources_that_say_so_are_cut(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(
            "".join(f"{document(i, 9)} {name}\n" for i in range(9))
        )
    sources = [{"name": "a", "path": "a.txt", "cut": 1}, {"name": "b", "path": "b.txt"}]
    texts = Corpus(CorpusSpec.model_validate({"sources": sources}), tmp_path)
    kept = Counter(text.source for text in texts)
    assert kept["b"] == 9 < kept["a"]
    assert texts.counts.sources["a"].cut == 9
    assert texts.counts.sources["b"].cut == 0


def test_what_is_done_to_a_text_depends_on_the_seed_and_on_it_alone(tmp_path: Path) -> None:
    documents = [document(i, 15) for i in range(300)]
    done: dict[str, Any] = {"cut": 0.3, "shuffle_words": 0.2}
    texts = {text.text for text in corpus(tmp_path, documents, **done)}
    others = [f"Something else {i}. And more of it." for i in range(100)]
    alone = {text.text for text in corpus(tmp_path, others, **done)}
    random.Random(0).shuffle(documents)
    assert {text.text for text in corpus(tmp_path, others + documents, **done)} == texts | alone
    reseeded = {text.text for text in corpus(tmp_path, documents, **done, seed=1)}
    assert len(texts & reseeded) < 0.8 * len(texts)


def test_shuffled_texts_have_the_same_words_and_come_as_often_as_asked(tmp_path: Path) -> None:
    texts = [f"w{i} b c d e" for i in range(4000)]
    given = corpus(tmp_path, texts, shuffle_words=0.05)
    kept = list(given)
    changed = [(a, b.text) for a, b in zip(texts, kept, strict=True) if a != b.text]
    assert all(sorted(a.split()) == sorted(b.split()) for a, b in changed)
    assert all(text.id == text_id(text.text) for text in kept)
    # One permutation in 120 leaves all where it was.
    assert abs(given.counts.sources["rows"].shuffled - 200) < 4 * math.sqrt(4000 * 0.05 * 0.95)
    assert 0.9 * given.counts.sources["rows"].shuffled <= len(changed)


def test_every_order_of_words_is_as_likely() -> None:
    orders = Counter(shuffled("a b c", i.to_bytes(16, "big"), 0) for i in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 5 * math.sqrt(1000 * 5 / 6) for count in orders.values())


@given(st.binary(min_size=16, max_size=16), st.floats(0, 1), st.floats(0, 1))
@settings(derandomize=True, deadline=None)
def test_what_is_chosen_stays_so_when_the_fraction_grows(id_: bytes, a: float, b: float) -> None:
    small, large = sorted((a, b))
    assert is_chosen("cut", id_, large, 0) >= is_chosen("cut", id_, small, 0)
    assert is_chosen("cut", id_, 1.0, 0)
    assert not is_chosen("cut", id_, 0.0, 0)


def test_being_held_out_cut_and_shuffled_have_nothing_to_do_with_each_other() -> None:
    ids = [text_id(str(i)) for i in range(4000)]
    for one, other in (("cut", "shuffle"), ("cut", "held out")):
        first = {id_ for id_ in ids if is_chosen(one, id_, 0.5, 0)}
        second = {
            id_
            for id_ in ids
            if (is_held_out(id_, 0.5, 0) if other == "held out" else is_chosen(other, id_, 0.5, 0))
        }
        assert abs(len(first & second) - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_what_was_done_to_a_text_stays_so_in_later_versions() -> None:
    """A cache built today must go on tomorrow."""
    text = document(0, 12)
    id_ = text_id(text)
    assert [len(split(piece)) for piece in cut(text, id_, (1, 4), 7)] == [2, 4, 2, 4]
    assert shuffled("one two three four five six", id_, 7) == "one three five six two four"
    assert near_key("Hello, World!", b"").hex() == "df8d09e93f874900a99b8775cc15b6c7"


SAME = [
    ("Hello, world!", "hello world"),
    ("Hello,  world", "Hello\n\tworld."),
    ("It's “fine”", "it s 'fine'"),
    ("\ufb01ne \uff26\uff35ll width", "fine full width"),
    ("STRASSE", "straße"),
    ("co\u00adoper\u200bate", "cooperate"),
    ("caf\u0065\u0301", "CAFÉ"),
    ("a—b", "a - b"),
    ("a\x00b", "a b"),
    ("(a) [b]", "a b"),
]
OTHER = [
    ("Hello world", "Hello worlds"),
    ("3.5", "35"),
    ("C++", "C"),
    ("resume", "résumé"),
    ("a b", "b a"),
    ("ab", "a b"),
    ("!!!", "???"),
    ("…", "—"),
    ("कि", "की"),
    ("$5", "5"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_texts_that_differ_in_dress_alone_are_near_duplicates(one: str, other: str) -> None:
    assert near_key(one, text_id(one)) == near_key(other, text_id(other))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_texts_that_differ_in_more_are_not(one: str, other: str) -> None:
    assert near_key(one, text_id(one)) != near_key(other, text_id(other))


def test_the_first_of_near_duplicates_stays_and_they_are_counted_apart(tmp_path: Path) -> None:
    rows = [
        "Hello, world!",
        "hello world",
        "Hello, world!",
        "hello world",
        "Other",
        "OTHER",
        "!",
        "?",
    ]
    texts = corpus(tmp_path, rows, near_duplicates="drop")
    assert [text.text for text in texts] == ["Hello, world!", "Other", "!", "?"]
    counts = texts.counts.sources["rows"]
    assert (counts.kept, counts.duplicates, counts.near_duplicates) == (4, 1, 3)
    kept = corpus(tmp_path, rows)
    assert len(list(kept)) == 6
    assert kept.counts.sources["rows"].near_duplicates == 0


def test_pieces_and_shuffled_texts_are_checked_for_duplicates_too(tmp_path: Path) -> None:
    one = "The same beginning. " * 2 + "And an end of its own."
    texts = corpus(tmp_path, [one, one + " "], cut=1, sentences=[1, 1], near_duplicates="drop")
    assert [text.text for text in texts] == ["The same beginning.", "And an end of its own."]
    assert texts.counts.sources["rows"].duplicates == 4


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"cut": 1.1}, "less than or equal to 1"),
        ({"sentences": [0, 4]}, "a range such as"),
        ({"sentences": [4, 3]}, "a range such as"),
        ({"shuffle_words": -0.1}, "greater than or equal to 0"),
        ({"near_duplicates": "yes"}, "'drop' or 'keep'"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused(
    wrong: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        corpus(tmp_path, [], **wrong)
