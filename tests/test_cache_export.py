"""An exported cache opens elsewhere with the reader's own rows, and its card tells the facts."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ROWS_PER_SHARD, contents, copy, corpus, lsa, made, write_corpus
from numpy.typing import NDArray
from shard_files import shard_file

from teacher_cache.build import Options, build
from teacher_cache.export import export
from teacher_cache.format import CacheError
from teacher_cache.reader import CacheReader

LEFT = lsa(name="left", width=6, licence="mit", prompts={"asked": "river | "})
RIGHT = lsa(name="right.2", width=5, licence="cc-by-nc-4.0")
TRAIN, HELD_OUT = range(47), range(47, 56)
SPLITS = {"train": TRAIN, "held_out": HELD_OUT}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_corpus(folder)
    made(folder / "cache", corpus(folder), [LEFT, RIGHT])
    export(CacheReader(folder / "cache"), folder / "whole")
    export(CacheReader(folder / "cache"), folder / "each", per_teacher=True)
    return folder


@pytest.fixture(scope="module")
def reader(place: Path) -> CacheReader:
    return CacheReader(place / "cache")


def vectors(reader: CacheReader, rows: range, *teachers: str) -> NDArray[np.float32]:
    return reader.vectors(rows, teachers or None).astype(np.float32)


def check(found: dict[str, list[Any]], reader: CacheReader, rows: range, *teachers: str) -> None:
    """Columns by name are the reader's, row by row."""
    assert found["id"] == reader.ids(rows)
    assert found["text"] == reader.texts(rows)
    assert found["source"] == reader.sources(rows)
    for teacher in teachers:
        name = "embedding_" + re.sub(r"\W", "_", teacher)
        np.testing.assert_array_equal(np.array(found[name]), vectors(reader, rows, teacher))
    if not teachers:
        np.testing.assert_array_equal(np.array(found["embedding"]), vectors(reader, rows))


def test_files_hold_the_rows_in_order_split_by_split(place: Path, reader: CacheReader) -> None:
    assert set(contents(place / "whole")) == {
        "README.md",
        "export.json",
        *(f"data/train-{i:05d}-of-00003.parquet" for i in range(3)),
        "data/held_out-00000-of-00001.parquet",
    }
    for split, rows in SPLITS.items():
        files = sorted((place / "whole" / "data").glob(f"{split}-*"))
        tables = [pq.read_table(path) for path in files]
        assert [len(table) for table in tables[:-1]] == [ROWS_PER_SHARD] * (len(tables) - 1)
        check(pa.concat_tables(tables).to_pydict(), reader, rows)


def test_vectors_are_float32_lists_of_fixed_size_stored_by_the_place_of_their_bytes(
    place: Path,
) -> None:
    schema = pq.read_schema(place / "each" / "data" / "held_out-00000-of-00001.parquet")
    assert [str(kind) for kind in schema.types] == [
        "string",
        "string",
        "string",
        "fixed_size_list<element: float>[6]",
        "fixed_size_list<element: float>[5]",
    ]
    assert not any(field.nullable for field in schema)
    metadata = pq.read_metadata(place / "whole" / "data" / "train-00000-of-00003.parquet")
    column = metadata.row_group(0).column(3)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    # float16 has no bits for the half of float32's.
    assert column.total_compressed_size < 0.7 * column.total_uncompressed_size


def test_datasets_opens_the_folder_as_it_is(
    place: Path, reader: CacheReader, tmp_path: Path
) -> None:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    found = load_dataset(str(place / "whole"), cache_dir=str(tmp_path))
    assert set(found) == set(SPLITS)
    for split, rows in SPLITS.items():
        check(found[split][:], reader, rows)
    assert found["train"].with_format("numpy")[3]["embedding"].dtype == np.float32
    each = load_dataset(str(place / "each"), split="held_out", cache_dir=str(tmp_path))
    check(each[:], reader, HELD_OUT, "left", "right.2")


@pytest.mark.parametrize("split", SPLITS)
def test_polars_opens_the_files(split: str, place: Path, reader: CacheReader) -> None:
    polars = pytest.importorskip("polars")
    found = polars.scan_parquet(place / "whole" / "data" / f"{split}-*.parquet").collect()
    check(found.to_dict(as_series=False), reader, SPLITS[split])
    assert found.schema["embedding"] == polars.Array(polars.Float32, 11)


@pytest.mark.parametrize("split", SPLITS)
def test_duckdb_opens_the_files(split: str, place: Path, reader: CacheReader) -> None:
    duckdb = pytest.importorskip("duckdb")
    files = place / "each" / "data" / f"{split}-*.parquet"
    relation = duckdb.sql(f"SELECT * FROM '{files}'")
    found = dict(zip(relation.columns, zip(*relation.fetchall(), strict=True), strict=True))
    columns = {name: list(values) for name, values in found.items()}
    check(columns, reader, SPLITS[split], "left", "right.2")


def test_some_teachers_leave_alone(place: Path, reader: CacheReader, tmp_path: Path) -> None:
    export(reader, tmp_path / "out", teachers=["right.2"])
    table = pq.read_table(tmp_path / "out" / "data" / "held_out-00000-of-00001.parquet")
    found = np.array(table.column("embedding").to_pylist())
    np.testing.assert_array_equal(found, vectors(reader, HELD_OUT, "right.2"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "right.2" in card
    assert "left" not in card
    with pytest.raises(CacheError, match="holds the teachers left, right"):
        export(reader, tmp_path / "other", teachers=["rigt"])


def sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_card_tells_teachers_licences_recipe_and_counts(place: Path, reader: CacheReader) -> None:
    from huggingface_hub import DatasetCard

    text = (place / "whole" / "README.md").read_text()
    front = DatasetCard(text).data.to_dict()
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [
        {"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS
    ]
    assert "license" not in front, "nobody has decided it"
    parts = sections(text)
    assert "56 texts, 9 of them held out" in parts[""]
    assert reader.identity in parts[""]
    assert "| left | 6 | fitted:tfidf-svd |" in parts["Teachers"]
    assert '"asked": "river | "' in parts["Teachers"]
    for block in reader.manifest.blocks:
        assert f"| {block.teacher} | {block.licence} |" in parts["Licences"]
        assert block.fingerprint in parts["Teachers"]
    assert "licence of `right.2`, cc-by-nc-4.0, is for non-commercial use" in parts["Licences"]
    assert "`left`" not in parts["Licences"]
    (recipe,) = re.findall(r"```json\n(.*?)```", parts["Corpus"], flags=re.DOTALL)
    assert json.loads(recipe) == reader.manifest.corpus
    for source, counts in reader.manifest.counts.items():
        names = re.search(r"\| source \|(.*)\|", parts["Corpus"])
        row = re.search(rf"\| {source} \|(.*)\|", parts["Corpus"])
        assert names
        assert row
        told = dict(zip(names[1].split(" | "), row[1].split(" | "), strict=True))
        assert {name.strip(): int(value) for name, value in told.items()} == {
            name.replace("_", " "): value for name, value in counts.items()
        }


@pytest.mark.parametrize("name", ["whole", "each"])
def test_lines_of_the_card_run(name: str, place: Path, tmp_path: Path) -> None:
    """In a folder of another name, from another place."""
    card = (place / name / "README.md").read_text()
    python = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(python) == 2
    for lines in python:
        if "polars" in lines:
            pytest.importorskip("polars")
        lines = lines.replace("path/to/this/folder", str(place / name))
        lines = lines.replace('split="train"', f'split="train", cache_dir="{tmp_path}"')
        exec(lines, {})


def test_machine_readable_facts_are_the_manifests(place: Path, reader: CacheReader) -> None:
    facts = json.loads((place / "each" / "export.json").read_text())
    assert facts["columns"] == {"embedding_left": ["left"], "embedding_right_2": ["right.2"]}
    manifest = json.loads((reader.path / "manifest.json").read_text())
    del manifest["shards"]
    assert facts["manifest"] == manifest


def test_parquet_cache_gives_the_same_export(place: Path, tmp_path: Path) -> None:
    options = Options(token_budget=128, rows_per_shard=ROWS_PER_SHARD, shard_format="parquet")
    build(tmp_path / "cache", corpus(place), [LEFT, RIGHT], options=options)
    export(CacheReader(tmp_path / "cache"), tmp_path / "out")
    found, expected = contents(tmp_path / "out"), contents(place / "whole")
    del found["export.json"], expected["export.json"]
    assert found == expected


def test_folder_that_is_not_empty_is_refused_and_kept(reader: CacheReader, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(CacheError, match="is not an empty folder; give another one"):
            export(reader, out)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert export(reader, tmp_path / "empty") > 0


def test_folder_that_no_other_can_take_the_place_of_is_refused_before_anything_is_written(
    reader: CacheReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), Path("../here"), tmp_path / "here"):
        with pytest.raises(CacheError, match=r"here is the working folder or a mount point.*/vec"):
            export(reader, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    assert export(reader, Path("vectors")) > 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["vectors"]


def test_name_that_is_taken_meanwhile_is_told_in_one_line_and_nothing_is_lost(
    reader: CacheReader, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    @contextmanager
    def meanwhile(_what: str, _total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None
        out.mkdir()
        (out / "thesis.txt").write_text("mine")

    with pytest.raises(CacheError, match=r"\.out\.unfinished is finished but cannot be renamed to"):
        export(reader, out, phase=meanwhile)
    assert contents(out) == {"thesis.txt": b"mine"}
    (out / "thesis.txt").unlink()
    assert export(reader, out) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_cache_without_held_out_rows_has_one_split(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    made(tmp_path / "cache", corpus(tmp_path, held_out=0), [LEFT])
    export(CacheReader(tmp_path / "cache"), tmp_path / "out")
    assert not list((tmp_path / "out" / "data").glob("held_out*"))
    assert "held_out-*" not in (tmp_path / "out" / "README.md").read_text()


def test_unfinished_export_of_something_else_is_begun_anew(
    place: Path, reader: CacheReader, tmp_path: Path
) -> None:
    aside = copy(place / "each", tmp_path / ".out.unfinished")
    assert (aside / "data").is_dir()
    export(reader, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(place / "whole")
    assert not aside.exists()


def test_damaged_shard_is_not_exported(place: Path, tmp_path: Path) -> None:
    own = copy(place / "cache", tmp_path / "own")
    path = shard_file(own, 1)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match=rf"{path} has checksum .* jasper-cache verify"):
        export(CacheReader(own), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_teachers_whose_columns_would_share_a_name_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    made(tmp_path / "cache", corpus(tmp_path), [lsa(name="a-b"), lsa(name="a.b", width=4)])
    reader = CacheReader(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"of a-b, a\.b two would share a column's name"):
        export(reader, tmp_path / "out", per_teacher=True)
    export(reader, tmp_path / "out", per_teacher=True, teachers=["a-b"])
