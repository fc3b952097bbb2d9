"""What is damaged is mended from what is whole, byte for byte; what cannot be is refused."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from faults import Disk
from jobs import TWO, bert, contents, copy, lsa, made_of_two
from machines import another_machine
from shard_files import shard_file
from small_models import change_weights

from teacher_cache.build import Options
from teacher_cache.format import CacheError, plan_path, read_json, record_path
from teacher_cache.reader import CacheReader
from teacher_cache.repair import repair
from teacher_cache.teachers import Teacher, TeacherError
from teacher_cache.verify import verify

JSON_FILES = ["manifest.json", "plan.json", "build.json", "shards/00001.json"]


@pytest.fixture(scope="module")
def whole(memory_folder: Path) -> Path:
    return made_of_two(memory_folder)


@pytest.fixture
def own(whole: Path) -> Iterator[Path]:
    """The same, to damage."""
    place = copy(whole, whole.parent / "own")
    yield place
    shutil.rmtree(place)


def repaired(cache: Path, teachers: Sequence[Teacher] = ()) -> list[str]:
    told: list[str] = []
    # The same batches as when it was built: other ones would change last bits of a transformer's.
    repair(cache, teachers, options=Options(token_budget=128), tell=told.append)
    return told


def flip(path: Path, place: int, bit: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 0xFF)


DAMAGES = [lose, cut, garble]


def test_whole_cache_is_left_alone(own: Path, whole: Path) -> None:
    with Disk(own).watched() as disk:
        assert repaired(own) == []
    assert disk.steps == []


def everything(cache: Path) -> list[Path]:
    return [path for path in sorted(cache.rglob("*")) if path.is_file()]


def test_any_file_may_be_lost_cut_or_garbled(own: Path, whole: Path) -> None:
    """One after the other: verification finds it, and repair makes the same bytes again."""
    files = everything(own)
    assert len(files) == 4 * 3 + 3 + 4
    for path in files:
        for damage in DAMAGES:
            damage(path)
            name = path.relative_to(own).as_posix()
            if path.name == "build.json" and damage is lose:
                assert verify(CacheReader(own)) == []  # a finished cache can do without it
                shutil.copy(whole / name, path)
                continue
            if path.name == "manifest.json":
                with pytest.raises(CacheError, match=r"manifest\.json|unfinished"):
                    CacheReader(own)
            else:
                assert verify(CacheReader(own, check_sizes=False)), (name, damage)
            told = repaired(own, TWO)
            assert told, (name, damage)
            assert contents(own) == contents(whole), (name, damage, told)


@pytest.mark.parametrize("name", JSON_FILES)
def test_flipped_bit_of_a_record_is_found_and_mended_or_left_to_a_person(
    name: str, own: Path, whole: Path
) -> None:
    """Where two files differ in what no identity covers, both are named and neither is changed."""
    path = own / name
    data = path.read_bytes()
    undecided = []
    for number, place in enumerate(range(3, len(data), max(1, len(data) // 40))):
        flip(path, place, 1 << number % 8)
        before = contents(own)
        try:
            found = verify(CacheReader(own, check_sizes=False))
        except CacheError as error:
            found = [str(error)]
        assert found, place
        try:
            repaired(own)
        except CacheError as error:
            undecided.append(str(error))
            assert contents(own) == before
            path.write_bytes(data)
        assert contents(own) == contents(whole), (place, found)
    assert all("nothing tells which is right: remove either" in line for line in undecided)
    assert bool(undecided) == (name != "shards/00001.json")


def test_of_two_that_differ_the_one_that_a_person_removes_is_written_again(
    own: Path, whole: Path
) -> None:
    for other in ("plan.json", "build.json"):
        word = '"read": ' if other == "plan.json" else '"licence": "'
        for wrong in (other, "manifest.json"):
            path = own / wrong
            path.write_text(path.read_text().replace(word, word + "1", 1))
            with pytest.raises(
                CacheError, match=f"{other}.* differs .*remove either .* or .*manifest"
            ):
                repaired(own)
            path.unlink()
            repaired(own)
            if other == "build.json" and wrong == other:
                assert not path.exists()
                shutil.copy(whole / other, path)
            assert contents(own) == contents(whole)


def test_only_the_damaged_shard_is_encoded(own: Path, whole: Path) -> None:
    garble(shard_file(own, 2))
    times = {path: path.stat().st_mtime_ns for path in everything(own)}
    assert repaired(own, TWO) == ["shard 2 was encoded again"]
    changed = {path for path in everything(own) if path.stat().st_mtime_ns != times.get(path)}
    assert changed == {shard_file(own, 2), record_path(own, 2)}
    assert contents(own) == contents(whole)


def test_shard_that_comes_out_otherwise_keeps_the_identity(own: Path, whole: Path) -> None:
    identity = CacheReader(own).identity
    garble(shard_file(own, 2))
    with another_machine(1):
        repaired(own, TWO)
    assert CacheReader(own).identity == identity
    assert verify(CacheReader(own)) == []
    assert shard_file(own, 2).name != shard_file(whole, 2).name
    assert len(list((own / "shards").iterdir())) == 8
    assert CacheReader(own).texts(range(56)) == CacheReader(whole).texts(range(56))


def test_many_things_may_be_damaged_at_once(own: Path, whole: Path) -> None:
    garble(shard_file(own, 0))
    lose(shard_file(own, 3))
    cut(record_path(own, 1))
    garble(plan_path(own, 2))
    lose(own / "build.json")
    garble(own / "teachers" / "left" / "model.safetensors")
    repaired(own, TWO)
    assert contents(own) == contents(whole)


def test_manifest_and_a_record_may_be_lost_together(own: Path, whole: Path) -> None:
    lose(own / "manifest.json")
    lose(record_path(own, 1))
    repaired(own)
    assert contents(own) == contents(whole)


def all_of(*files: Callable[[Path], Path]) -> Callable[[Path], None]:
    def damage(cache: Path) -> None:
        for path in [file(cache) for file in files]:
            garble(path)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            all_of(lambda c: plan_path(c, 1), lambda c: shard_file(c, 1)),
            r"plan/00001\.arrow has checksum .*; and shard 1 .*: nothing else has its texts",
        ),
        (
            all_of(
                lambda c: c / "plan.json", lambda c: plan_path(c, 1), lambda c: shard_file(c, 1)
            ),
            r"plan\.json.*; and shard 1 .*: nothing else has its texts",
        ),
        (
            all_of(lambda c: c / "manifest.json", lambda c: c / "plan.json"),
            r"manifest\.json.*cannot be written again: .*plan\.json",
        ),
        (
            all_of(lambda c: c / "manifest.json", lambda c: c / "build.json"),
            r"manifest\.json.*cannot be written again: .*build\.json",
        ),
    ],
)
def test_what_is_damaged_in_every_copy_is_refused(
    damage: Callable[[Path], None], message: str, own: Path
) -> None:
    damage(own)
    before = contents(own)
    with pytest.raises(CacheError, match=message):
        repaired(own, TWO)
    assert contents(own) == before


def test_shard_is_not_encoded_without_its_teachers(own: Path, memory_folder: Path) -> None:
    garble(shard_file(own, 1))
    before = contents(own)
    message = r"shard 1 .* has checksum .*: this takes the teachers; give the recipe .* --recipe"
    with pytest.raises(CacheError, match=message):
        repaired(own)
    with pytest.raises(CacheError, match="has the teacher 'left', the recipe has right"):
        repaired(own, TWO[1:])
    with pytest.raises(CacheError, match=r"left\.width is 4 in the cache, 5 now"):
        repaired(own, [lsa(name="left", width=5, sample=12), TWO[1]])
    assert contents(own) == before
    shutil.rmtree(own / "plan")
    lose(own / "plan.json")
    with pytest.raises(CacheError, match="without a plan this cannot be made again"):
        repaired(own, TWO)


def test_fitted_teacher_that_comes_out_otherwise_is_refused(own: Path) -> None:
    garble(own / "teachers" / "right" / "model.safetensors")
    before = contents(own)
    with another_machine(1), pytest.raises(TeacherError, match="'right': fitted again, its finger"):
        repaired(own, TWO)
    assert contents(own) == before


def test_transformer_is_found_by_the_recipe_and_must_be_the_same(
    cache: CacheReader, small_encoder: Path, tmp_path: Path
) -> None:
    own = copy(cache.path, tmp_path / "own")
    lose(shard_file(own, 3))
    with pytest.raises(TeacherError.__base__, match="there is no folder"):  # type: ignore[arg-type]
        repaired(own, [bert(tmp_path / "gone"), lsa()])
    changed = copy(small_encoder, tmp_path / "changed")
    weight = "encoder.layer.2.output.dense.weight"
    change_weights(changed, weight, lambda tensor: tensor.view(-1)[0].add_(1e-3))
    with pytest.raises(CacheError, match=r"another teacher: bert\.fingerprint"):
        repaired(own, [bert(changed), lsa()])
    moved = copy(small_encoder, tmp_path / "moved")
    assert repaired(own, [bert(moved), lsa()]) == ["shard 3 was encoded again"]
    assert contents(own) == contents(cache.path)


def test_unfinished_cache_is_left_to_build(own: Path) -> None:
    lose(own / "manifest.json")
    for path in (shard_file(own, 1), record_path(own, 1)):
        lose(path)
    before = contents(own)
    with pytest.raises(CacheError, match=r"shard 1 has no record; finish it with .* build"):
        repaired(own, TWO)
    assert contents(own) == before


def test_repair_that_is_interrupted_goes_on(own: Path, whole: Path) -> None:
    garble(shard_file(own, 1))
    checksum = read_json(record_path(own, 1))["checksum"]
    lose(record_path(own, 1))  # as it is while the shard is encoded
    repaired(own, TWO)
    assert read_json(record_path(own, 1))["checksum"] == checksum
    assert contents(own) == contents(whole)
