"""A fitted teacher goes with joined and merged caches as what its block says, or not at all."""

import shutil
from pathlib import Path

import pytest
from jobs import contents, corpus, lsa, made, write_corpus

from teacher_cache.format import CacheError
from teacher_cache.join import join
from teacher_cache.reader import CacheReader
from teacher_cache.verify import verify

LEFT, RIGHT = lsa(name="left", width=4, sample=12), lsa(name="right", width=3, sample=13)
FILES = ["model.safetensors", "vocabulary.json"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The caches `a` and `b`, of the same texts under a fitted teacher each."""
    write_corpus(tmp_path)
    made(tmp_path / "a", corpus(tmp_path), [LEFT])
    made(tmp_path / "b", corpus(tmp_path), [RIGHT])
    return tmp_path


def joined(place: Path) -> CacheReader:
    join([CacheReader(place / "a"), CacheReader(place / "b")], place / "out")
    return CacheReader(place / "out")


def test_teachers_are_copied_as_they_are(place: Path) -> None:
    assert verify(joined(place)) == []
    for cache, name in (("a", "left"), ("b", "right")):
        copied = contents(place / "out" / "teachers" / name)
        assert copied == contents(place / cache / "teachers" / name)
        assert sorted(copied) == FILES


@pytest.mark.parametrize("name", FILES)
def test_damaged_teacher_is_refused_and_not_copied(name: str, place: Path) -> None:
    path = place / "b" / "teachers" / "right" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CacheError, match=rf"'right': .*{path.parent} is damaged; mend it with: jas"
    ):
        joined(place)
    assert not (place / "out" / "teachers" / "right").exists()


def test_link_to_elsewhere_is_not_followed(place: Path) -> None:
    path = place / "a" / "teachers" / "left" / "vocabulary.json"
    path.rename(place / "secret.json")
    path.symlink_to(place / "secret.json")
    with pytest.raises(CacheError, match=r"vocabulary\.json is a symbolic link, expected a file"):
        joined(place)
    shutil.move(place / "a" / "teachers", place / "teachers")
    (place / "a" / "teachers").symlink_to(place / "teachers")
    with pytest.raises(CacheError, match="teachers is a symbolic link, expected a folder"):
        joined(place)
    assert not [*(place / "out" / "teachers").iterdir()]


def test_teacher_that_is_there_already_must_be_the_same(place: Path) -> None:
    copied = place / "out" / "teachers" / "left"
    joined(place)
    (place / "out" / "manifest.json").unlink()
    (copied / "vocabulary.json").unlink()
    with pytest.raises(CacheError, match=rf"'left': .*{copied} is another: remove it and run"):
        joined(place)
    shutil.rmtree(copied)
    assert verify(joined(place)) == []


def test_cache_that_lost_its_teacher_is_joined_without_it(place: Path) -> None:
    shutil.rmtree(place / "a" / "teachers")
    joined(place)
    assert [path.name for path in (place / "out" / "teachers").iterdir()] == ["right"]
