"""Mend what is damaged, from what is whole.

Nearly all of a cache is there twice: texts in the plan and in the shards, records beside the shards
and in the manifest, what the manifest describes in `plan.json` and `build.json`. Vectors are there
once, but their texts and teachers are known: a damaged shard is encoded again, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import xxhash

from data.corpus import text_id
from teacher_cache.begun import read_begun
from teacher_cache.build import Options, complete
from teacher_cache.encoders import loading
from teacher_cache.encoders.device import check_device
from teacher_cache.files import remove_if, remove_leftovers
from teacher_cache.finish import Build, Phase, manifest_of, silent
from teacher_cache.format import (
    BUILD_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    PLAN_FILE,
    CacheError,
    FileRecord,
    Manifest,
    Plan,
    identity_of,
    plan_path,
    read_json,
    record_path,
    shard_path,
    teacher_path,
)
from teacher_cache.located import Located, fit, locate, sample_of
from teacher_cache.opening import file_checksum, read_manifest
from teacher_cache.plan import read_plan, read_texts
from teacher_cache.plan_progress import read_unlisted
from teacher_cache.ranks import Rank
from teacher_cache.reader import CacheReader
from teacher_cache.shards import Shards
from teacher_cache.teachers import Teacher
from teacher_cache.verify import different_fields, find
from teacher_cache.writer import Texts, committed, write_plan_file, write_record

Tell = Callable[[str], None]
Lines = Mapping[int, str]
"""What is wrong with shards, or with blocks, by number."""


def repair(
    cache: Path,
    teachers: Sequence[Teacher] = (),
    *,
    base: Path = Path(),
    options: Options = Options(),
    phase: Phase = silent,
    tell: Tell = lambda _: None,
) -> None:
    """Mend a finished cache; `tell` hears of each thing that was done.

    `teachers` are those of the recipe it was built with, and must be the very same. They are needed
    where a shard must be encoded, or a fitted teacher fitted, again: no model is looked for where a
    file of the cache says. In the end, what was mended is verified.

    Raises:
        CacheError: something is damaged beyond what is known from elsewhere, or a teacher is
            another one.
        TeacherError: a teacher cannot be found or loaded.
    """
    if teachers:
        check_device(options.device)
    remove_leftovers(cache)
    manifest = _mend_manifest(cache, tell)
    reader = CacheReader(cache, check_sizes=False)
    rows = iter([record.rows for record in manifest.shards])
    with phase("verifying", manifest.rows) as advance:
        damages = list(find(reader, lambda _: advance(next(rows))))
    if not damages:
        return
    of = {
        part: {damage.index: damage.line for damage in damages if damage.part == part}
        for part in ("shard", "record", "plan", "texts", "build", "teacher", "order")
    }
    for line in of["order"].values():
        raise _disordered(reader, line)
    lost = of["shard"]
    for index in of["record"].keys() - lost.keys():
        write_record(record_path(cache, index), manifest.shards[index])
        tell(f"{record_path(cache, index)} was written again from the manifest")
    for line in of["build"].values():
        _mend_build(reader, line)
        tell(f"{cache / BUILD_FILE} was written again from the manifest")
    if of["plan"] or of["texts"]:
        _mend_plan(reader, of["plan"], of["texts"], lost, tell)
    if lost or of["teacher"]:
        plan, line = read_plan(cache), next(chain(lost.values(), of["teacher"].values()))
        if plan is None:
            raise CacheError(f"{line}; without a plan this cannot be made again")
        found = _teachers(reader, teachers, base, line)
        found = _fitted(reader, plan, found, of["teacher"], tell)
        if not (cache / BUILD_FILE).exists():
            write_record(cache / BUILD_FILE, _begun(manifest))
        read_begun(cache, found)
        for index in lost:
            # From here on the shard is one that was never encoded, unless another mended it by now.
            _forget(cache, manifest, index)
        missing = [index for index in lost if committed(cache, index) is None]
        if lost:
            complete(cache, plan, found, (), options=options, phase=phase)
        for index in missing:
            tell(f"shard {index} was encoded again")
    left = [damage.line for damage in find(CacheReader(cache), shards={*lost, *of["record"]})]
    if left:
        raise CacheError(f"{cache} is still damaged: {left[0]}")


def _mend_manifest(cache: Path, tell: Tell) -> Manifest:
    """The manifest, written again where that is needed and other files tell what it held."""
    path = cache / MANIFEST_FILE
    try:
        manifest = read_manifest(cache)
    except CacheError as error:
        manifest = _assembled(cache, error)
        write_record(path, manifest)
        tell(f"{path} was written again from {PLAN_FILE}, {BUILD_FILE} and the records")
        return manifest
    shards = list(manifest.shards)
    for index, described in enumerate(shards):
        record = _record(cache, index)
        if record in (None, described) or _is_whole(cache, manifest, index, described):
            continue
        if record is not None and _is_whole(cache, manifest, index, record):
            shards[index] = record
    if shards != list(manifest.shards):
        manifest = replace(manifest, shards=tuple(shards))
        write_record(path, manifest)
        tell(f"{path} was written again from the records of whole shards")
    return manifest


def _assembled(cache: Path, why: CacheError) -> Manifest:
    """The manifest that the plan, the begun build and the records make."""
    try:
        plan = read_plan(cache)
        begun = Build.from_json(read_json(cache / BUILD_FILE), str(cache / BUILD_FILE))
    except (CacheError, FileNotFoundError) as error:
        raise CacheError(f"{why}; it cannot be written again: {error}") from None
    if plan is None:
        raise why
    if begun.identity != _identity(plan, begun):
        raise CacheError(f"{why}; {BUILD_FILE} is damaged too, and nothing else has the teachers")
    records = [
        _record(cache, i) or _recorded(cache, plan, begun, i) for i in range(len(plan.shards))
    ]
    shards = tuple(record for record in records if record is not None)
    if len(shards) < len(records):
        raise CacheError(
            f"{why}; it cannot be written again: shard {records.index(None)} has no record; "
            "finish it with the jasper-cache build that began it"
        )
    return manifest_of(cache, plan, begun, shards)


def _forget(cache: Path, manifest: Manifest, index: int) -> None:
    """Remove the record of a damaged shard, unless it is of another file, which is whole.

    The shard may be damaged though its file is as the record says: its rows may be no good.
    """

    def describes_damage(aside: Path) -> bool:
        record = _read(aside)
        if record is None or record == manifest.shards[index]:
            return True
        return not _is_whole(cache, manifest, index, record)

    remove_if(record_path(cache, index), describes_damage)


def _record(cache: Path, index: int) -> FileRecord | None:
    return _read(record_path(cache, index))


def _read(path: Path) -> FileRecord | None:
    try:
        return FileRecord.from_json(read_json(path), str(path))
    except (CacheError, FileNotFoundError):
        return None


def _recorded(cache: Path, plan: Plan, begun: Build, index: int) -> FileRecord | None:
    """The record of a shard that has lost it: its name tells whether the file is whole."""
    planned = plan.shards[index]
    for path in record_path(cache, index).parent.glob(f"{index:05d}-*.*"):
        checksum = file_checksum(path)
        size = path.stat().st_size
        record = FileRecord(planned.rows, size, checksum, planned.ids_digest, begun.shard_format)
        if shard_path(cache, index, record) == path:
            return record
    return None


def _is_whole(cache: Path, manifest: Manifest, index: int, record: FileRecord) -> bool:
    """Whether a shard's file is the one that this record describes."""
    shards = (*manifest.shards[:index], record, *manifest.shards[index + 1 :])
    try:
        batch = Shards(cache, replace(manifest, shards=shards)).batch(index, ["id"])
        ids = b"".join(batch.column("id").to_pylist())
        digest = xxhash.xxh3_128_hexdigest(ids)
        path = shard_path(cache, index, record)
        return digest == record.ids_digest and file_checksum(path) == record.checksum
    except (CacheError, FileNotFoundError):
        return False


def _begun(manifest: Manifest) -> Build:
    return Build(manifest.identity, manifest.blocks, manifest.pooled, manifest.shards[0].format)


def _identity(plan: Plan, begun: Build) -> str:
    return identity_of(
        plan.ids_digest, plan.held_out_rows, plan.rows_per_shard, begun.blocks, begun.pooled
    )


def _mend_build(reader: CacheReader, line: str) -> None:
    path = reader.path / BUILD_FILE
    try:
        begun = Build.from_json(read_json(path), str(path))
    except CacheError:
        begun = None
    expected = _begun(reader.manifest)
    if begun and begun != expected and _decisive(begun) == _decisive(expected):
        raise _undecided(path, reader, line)
    write_record(path, expected)


def _decisive(begun: Build) -> tuple[object, ...]:
    return (
        begun.identity,
        begun.pooled,
        begun.shard_format,
        [block.decisive() for block in begun.blocks],
    )


def _undecided(path: Path, reader: CacheReader, line: str) -> CacheError:
    """Of two files that differ where no identity reaches, a person must say which is right."""
    return CacheError(
        f"{line}, and nothing tells which is right: remove either {path} or "
        f"{reader.path / MANIFEST_FILE}, and repair writes it again from the other"
    )


def _mend_plan(
    reader: CacheReader, of_plan: Lines, of_texts: Lines, lost: Lines, tell: Tell
) -> None:
    """Write the plan again, its texts from whole shards."""
    cache, manifest = reader.path, reader.manifest
    try:
        plan = read_plan(cache)
    except CacheError:
        plan = None
    if plan is not None and set(different_fields(reader, plan)) & {"corpus", "counts"}:
        raise _undecided(cache / PLAN_FILE, reader, of_plan[0])
    kept: dict[int, FileRecord] = {}
    digest = xxhash.xxh3_128()
    for index in range(len(manifest.shards)):
        if plan is not None and not of_plan and index not in of_texts:
            kept[index], ids = plan.shards[index], read_texts(cache, plan, index).ids
        elif index not in lost:
            ids = reader.shard(index, ["id"]).column("id").to_pylist()
        elif (unlisted := _unlisted(reader, index)) is not None:
            kept[index], ids = unlisted
        else:
            line = of_texts.get(index) or of_plan[0]
            raise CacheError(f"{line}; and {lost[index]}: nothing else has its texts")
        digest.update(b"".join(ids))
    if digest.hexdigest() != manifest.ids_digest:
        # Nothing was written yet: a plan that is right must not become what is wrong.
        raise _disordered(reader, next(chain(of_plan.values(), of_texts.values())))
    records = []
    for index in range(len(manifest.shards)):
        if index in kept:
            records.append(kept[index])
            continue
        batch = reader.shard(index, ["id", "text", "source"])
        texts = Texts(*(column.to_pylist() for column in batch.columns))
        records.append(write_plan_file(cache, index, texts))
        tell(f"{plan_path(cache, index)} was written again from its shard")
    mended = Plan(
        format_version=FORMAT_VERSION,
        rows=manifest.rows,
        held_out_rows=manifest.held_out_rows,
        rows_per_shard=manifest.rows_per_shard,
        ids_digest=manifest.ids_digest,
        corpus=manifest.corpus,
        counts=manifest.counts,
        shards=tuple(records),
    )
    if mended != plan:
        write_record(cache / PLAN_FILE, mended)
        tell(f"{cache / PLAN_FILE} was written again from the manifest")


def _unlisted(reader: CacheReader, index: int) -> tuple[FileRecord, Sequence[bytes]] | None:
    """A file of the plan that is whole by the manifest, whatever became of `plan.json`."""
    path = plan_path(reader.path, index)
    try:
        record, texts = read_unlisted(path)
    except (CacheError, FileNotFoundError):
        return None
    own = all(text_id(text) == id_ for id_, text in zip(texts.ids, texts.texts, strict=True))
    if not own or record.ids_digest != reader.manifest.shards[index].ids_digest:
        return None
    return record, texts.ids


def _disordered(reader: CacheReader, line: str) -> CacheError:
    """Shards and their records agree, and yet the cache had other rows: they were tampered with."""
    cache, shards = reader.path, reader.manifest.shards
    try:
        plan = read_plan(cache)
    except CacheError:
        plan = None
    planned = shards if plan is None or len(plan.shards) != len(shards) else plan.shards
    pairs = enumerate(zip(shards, planned, strict=True))
    other = [index for index, (one, two) in pairs if one.ids_digest != two.ids_digest]
    if not other:
        return CacheError(f"{line}; nothing here tells which they were: build the cache again")
    paths = [cache / MANIFEST_FILE, *(record_path(cache, index) for index in other)]
    return CacheError(
        f"{line}; where the plan is right, remove {' and '.join(map(str, paths))}: repair then "
        "writes them again from it"
    )


def _teachers(
    reader: CacheReader, teachers: Sequence[Teacher], base: Path, line: str
) -> list[Located]:
    """The cache's teachers, out of those given."""
    if not teachers:
        raise CacheError(
            f"{line}: this takes the teachers; give the recipe it was built with: "
            f"jasper-cache repair {reader.path} --recipe RECIPE"
        )
    given = {teacher.name: teacher for teacher in teachers}
    unknown = [name for name in reader.teachers if name not in given]
    if unknown:
        raise CacheError(
            f"{reader.path} has the teacher {unknown[0]!r}, the recipe has {', '.join(given)}"
        )
    kept = reader.manifest.pooled
    return [
        locate(replace(given[name], keep_pooled=bool(kept and kept.teacher == name)), base)
        for name in reader.teachers
    ]


def _fitted(
    reader: CacheReader, plan: Plan, found: Sequence[Located], unfit: Lines, tell: Tell
) -> list[Located]:
    """Teachers that lie beside the cache, fitted again where that is needed."""
    fitted = []
    for index, (one, block) in enumerate(zip(found, reader.manifest.blocks, strict=True)):
        folder = teacher_path(reader.path, block.teacher)
        if one.folder is None and (index in unfit or not folder.exists()):
            texts = sample_of(reader.path, plan, one.teacher)
            loading.fit_again(one.teacher, folder, texts, block.fingerprint)
            tell(f"teacher {block.teacher!r} was fitted again")
        fitted.append(fit(one, reader.path, plan, Rank()))
    return fitted
