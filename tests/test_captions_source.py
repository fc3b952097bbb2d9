"""Captions of image–caption pairs as a corpus: what stage 4's caption cache is built from."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from small_pairs import pairs, write_folder, write_tar

from data.corpus import Corpus, CorpusError, CorpusSpec, SourceSpec
from data.pairs import Pairs
from data.pairs_spec import PairsSpec
from data.sources import open_source

CONTENT = pairs(7)


def source(spec: PairsSpec) -> SourceSpec:
    return SourceSpec(name="captions", pairs=spec)


@pytest.fixture
def tars(tmp_path: Path) -> PairsSpec:
    write_tar(tmp_path / "pairs", CONTENT)
    return PairsSpec(path="pairs", caption_field="conversations", held_out=0.5)


def test_a_corpus_of_pairs_has_their_very_captions(tars: PairsSpec, tmp_path: Path) -> None:
    corpus = Corpus(CorpusSpec(sources=[source(tars)]), tmp_path)
    captions = [caption for _, caption in CONTENT]
    assert sorted(text.text for text in corpus) == sorted(captions)
    assert sorted(Pairs(tars, tmp_path).source.captions.to_pylist()) == sorted(captions)


def test_drawings_have_captions_too(tmp_path: Path) -> None:
    spec = PairsSpec(generator="drawings", count=725)
    texts = [text.text for text in Corpus(CorpusSpec(sources=[source(spec)]), tmp_path)]
    assert len(texts) == len(set(texts)) == 720


def test_rows_without_a_caption_are_counted_once(tmp_path: Path) -> None:
    content = [*CONTENT, (CONTENT[0][0], " ")]
    write_folder(tmp_path / "pairs", content)
    spec = CorpusSpec(sources=[source(PairsSpec(path="pairs", bad_rows="skip"))])
    corpus = Corpus(spec, tmp_path)
    texts = corpus.start()
    some = [next(texts) for _ in range(3)]
    rest = list(corpus.start(texts.state(), iter([(text.id, text.text) for text in some])))
    assert len(rest) == 4
    counts = corpus.counts.sources["captions"]
    assert (counts.read, counts.skipped, counts.kept) == (8, 1, 7)


def test_a_pass_goes_on_from_any_position(tars: PairsSpec, tmp_path: Path) -> None:
    start = open_source(source(tars), tmp_path)
    whole = list(start(None))
    for done in range(len(whole) + 1):
        rows = start(None)
        first = [next(rows) for _ in range(done)]
        assert first + list(start(rows.position())) == whole


def test_other_pairs_are_not_gone_on_with(tars: PairsSpec, tmp_path: Path) -> None:
    rows = open_source(source(tars), tmp_path)(None)
    next(rows)
    write_folder(tmp_path / "others", CONTENT[:3])
    others = open_source(source(PairsSpec(path="others/captions.jsonl")), tmp_path)
    with pytest.raises(CorpusError, match="expected the pairs whose captions were read before"):
        others(rows.position())


def test_fields_do_not_go_with_pairs(tars: PairsSpec) -> None:
    with pytest.raises(ValidationError, match="fields goes with path and dataset"):
        SourceSpec(name="captions", pairs=tars, fields="caption")
