"""Plan → missing shards → encode → commit → manifest. A build that resumes takes the same path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.corpus import Corpus
from teacher_cache import models
from teacher_cache.encoders import loading
from teacher_cache.encoders.probe import probe
from teacher_cache.encoders.protocol import Encoded, Encoder
from teacher_cache.files import remove_leftovers
from teacher_cache.format import (
    BUILD_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    PLAN_FILE,
    PLAN_FOLDER,
    ROWS_PER_SHARD,
    VECTOR_DTYPE,
    Block,
    CacheError,
    FileRecord,
    Manifest,
    Plan,
    Record,
    identity_of,
    read_json,
    record_path,
    shard_path,
)
from teacher_cache.golden import hold, read_goldens
from teacher_cache.plan import corpus_facts, make_plan, read_plan, read_texts
from teacher_cache.plan_progress import clear_progress
from teacher_cache.ranks import Rank
from teacher_cache.teachers import DEFAULT_PROMPT, Teacher
from teacher_cache.writer import Texts, write_record, write_shard

Phase = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a phase of work: (what, how many in all or None) → a context whose value is told each
advance. How a caller shows progress is the caller's affair."""

POLL_SECONDS = 0.5


def silent(_: str, __: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A `Phase` that shows nothing."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Build(Record):
    """`build.json`: under which teachers the shards of an unfinished cache are encoded."""

    identity: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """How a build runs, as opposed to what it builds: none of this enters the identity.

    `token_budget` is the number of padded tokens in a batch (None: by device). `goldens` are golden
    files of the build's teachers: who is about to encode must give their vectors first.
    """

    rank: Rank = field(default_factory=Rank)
    device: str = "cpu"
    token_budget: int | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    goldens: tuple[Path, ...] = ()


def build(
    cache: Path,
    corpus: Corpus,
    teachers: Sequence[Teacher],
    *,
    base: Path = Path(),
    options: Options = Options(),
    phase: Phase = silent,
) -> Manifest | None:
    """Build a cache, or finish one that was begun; a finished one is checked and returned.

    Rank 0 plans and every rank encodes its own shards, `index % world`; the rank that commits the
    last missing shard writes the manifest. Relative folders of teachers are seen from `base`.
    Gives None to a rank that finished while others still work.

    Raises:
        CacheError: the folder holds a cache of another corpus or of other teachers.
        TeacherError: a teacher cannot be found, loaded, gives vectors that are no vectors, or
            others than a golden file's.
        CorpusError: the corpus cannot be read.
    """
    _check_names(teachers, corpus)
    goldens = read_goldens(options.goldens, teachers)
    sources = [_source(teacher, base) for teacher in teachers]
    plan = _plan(cache, corpus, options, phase)
    _begun(cache, sources)  # what can be refused is refused before a teacher is fitted
    sources = [_fit(source, cache, plan, options) for source in sources]
    begun = _begun(cache, sources)
    remove_leftovers(cache)
    missing = [i for i in range(len(plan.shards)) if committed(cache, i) is None]
    mine = [i for i in missing if i % options.rank.world == options.rank.index]
    if mine or begun is None:
        encoders = [_load(source, options) for source in sources]
        for source, encoder in zip(sources, encoders, strict=True):
            probe(encoder, source.teacher)
            hold(encoder, source.teacher, goldens)
        begun = begun or _begin(cache, plan, sources, encoders, options)
        rows = sum(plan.shards[i].rows for i in mine)
        with phase("encoding", rows * len(teachers)) as advance:
            _encode_shards(cache, plan, begun, mine, sources, encoders, advance)
    return _finish(cache, plan, begun)


def committed(cache: Path, index: int) -> FileRecord | None:
    """The record of a shard, None unless it and a file of the recorded size are there."""
    path = record_path(cache, index)
    if not path.exists():
        return None
    record = FileRecord.from_json(read_json(path), str(path))
    shard = shard_path(cache, index)
    return record if shard.exists() and shard.stat().st_size == record.bytes else None


@dataclass(frozen=True, slots=True)
class _Source:
    """A teacher and where its files lie (None: it is still to be fitted)."""

    teacher: Teacher
    folder: Path | None
    revision: str | None = None
    fingerprint: str = ""


def _check_names(teachers: Sequence[Teacher], corpus: Corpus) -> None:
    names = [teacher.name for teacher in teachers]
    if not names or len(set(names)) != len(names):
        raise CacheError(f"expected one or more teachers of different names, found {names}")
    sources = [source.name for source in corpus.spec.sources]
    for teacher in teachers:
        unknown = sorted(set(teacher.prompts) - {*sources, DEFAULT_PROMPT})
        if unknown:
            raise CacheError(
                f"teacher {teacher.name!r} has a prompt for the source {unknown[0]!r}, which the "
                f"corpus has not; it has {', '.join(sources)} (and {DEFAULT_PROMPT!r} is for all)"
            )


def _source(teacher: Teacher, base: Path) -> _Source:
    if teacher.repository is None and teacher.sample is not None:
        return _Source(teacher, None)
    folder, revision = loading.locate(teacher, base)
    return _fingerprinted(teacher, folder, revision)


def _fingerprinted(teacher: Teacher, folder: Path, revision: str | None) -> _Source:
    files = loading.inspect_files(teacher, folder)
    return _Source(teacher, folder, revision, models.fingerprint(folder, files))


def _plan(cache: Path, corpus: Corpus, options: Options, phase: Phase) -> Plan:
    plan = read_plan(cache)
    if plan is None and options.rank.index == 0:
        _check_new(cache)
        with phase("planning", corpus.spec.texts) as advance:
            plan = make_plan(cache, corpus, rows_per_shard=options.rows_per_shard, on_text=advance)
    elif options.rank.index == 0:
        clear_progress(cache)  # of a planner that died between its last two steps
    while plan is None:
        time.sleep(POLL_SECONDS)
        plan = read_plan(cache)
    difference = first_difference(dict(plan.corpus), dict(corpus_facts(corpus)), "corpus")
    if difference:
        raise CacheError(
            f"{cache} was planned from another corpus: {difference}; "
            "build into another folder, or with the recipe it was begun with"
        )
    return plan


def _check_new(cache: Path) -> None:
    """A cache begins in an empty folder, or in one where planning was broken off."""
    if cache.exists() and not cache.is_dir():
        raise CacheError(f"{cache} is a file, not a folder; give another one")
    for path in cache.glob("*"):
        if path.name != PLAN_FOLDER and not path.name.startswith(f".{PLAN_FILE}."):
            raise CacheError(
                f"{cache} is not a cache: it has no {PLAN_FILE} but it holds {path.name}; "
                "give an empty folder or a new one"
            )


def _fit(source: _Source, cache: Path, plan: Plan, options: Options) -> _Source:
    """Fit a teacher that comes with no weights, once; its folder is then like any other's."""
    if source.folder is not None:
        return source
    folder = cache / "teachers" / source.teacher.name
    if options.rank.index == 0:
        loading.fit(source.teacher, folder, _sample(cache, plan, source.teacher))
    while not loading.is_fitted(source.teacher, folder):
        time.sleep(POLL_SECONDS)
    return _fingerprinted(source.teacher, folder, None)


def _sample(cache: Path, plan: Plan, teacher: Teacher) -> Iterable[str]:
    wanted = min(teacher.sample or 0, plan.rows - plan.held_out_rows)
    for index in range(len(plan.shards)):
        texts = read_texts(cache, plan, index).texts[:wanted]
        yield from texts
        wanted -= len(texts)
        if wanted == 0:
            return


def _load(source: _Source, options: Options) -> Encoder:
    assert source.folder is not None  # for the type: fitted by now
    return loading.load_encoder(
        source.teacher, source.folder, device=options.device, token_budget=options.token_budget
    )


def _begun(cache: Path, sources: Sequence[_Source]) -> Build | None:
    path = cache / BUILD_FILE
    if not path.exists():
        return None
    begun = Build.from_json(read_json(path), str(path)).with_records(str(path), blocks=Block)
    asked = [source.teacher.name for source in sources]
    found = [block.teacher for block in begun.blocks]
    if asked != found:
        raise CacheError(
            f"{cache} is built with the teachers {', '.join(found)}, not {', '.join(asked)}; "
            "build into another folder"
        )
    for block, source in zip(begun.blocks, sources, strict=True):
        # A teacher that is still to be fitted has no fingerprint to compare.
        declared = loading.declared(source.teacher, source.fingerprint or block.fingerprint)
        difference = first_difference(
            {name: block.to_json()[name] for name in declared}, declared, block.teacher
        )
        if difference:
            raise CacheError(
                f"{cache} was begun with another teacher: {difference}; "
                "build into another folder, or with the teacher it was begun with"
            )
    return begun


def _begin(
    cache: Path,
    plan: Plan,
    sources: Sequence[_Source],
    encoders: Sequence[Encoder],
    options: Options,
) -> Build:
    blocks: list[Block] = []
    for source, encoder in zip(sources, encoders, strict=True):
        blocks.append(
            loading.block_of(
                source.teacher,
                encoder,
                offset=sum(block.width for block in blocks),
                revision=source.revision,
                fingerprint=source.fingerprint,
            )
        )
    identity = identity_of(plan.ids_digest, plan.held_out_rows, plan.rows_per_shard, blocks)
    begun = Build(identity, tuple(blocks))
    # Ranks arrive here together and each writes the same bytes: the check is what counts.
    write_record(cache / BUILD_FILE, begun)
    return begun


def _encode_shards(
    cache: Path,
    plan: Plan,
    begun: Build,
    indices: Sequence[int],
    sources: Sequence[_Source],
    encoders: Sequence[Encoder],
    advance: Callable[[int], None],
) -> None:
    """Encode and commit shards one after the other.

    While the device encodes one shard, a thread tokenises the next and another writes the one
    before: three shards are in memory, never more.
    """

    def prepare(index: int) -> tuple[Texts, list[Any]]:
        texts = read_texts(cache, plan, index)
        return texts, [
            encoder.prepare(texts.texts, [source.teacher.prompt_for(s) for s in texts.sources])
            for encoder, source in zip(encoders, sources, strict=True)
        ]

    def commit(index: int, texts: Texts, vectors: Sequence[Encoded]) -> None:
        names = [source.teacher.name for source in sources]
        blocks = list(zip(names, vectors, strict=True))
        write_shard(cache, index, identity=begun.identity, texts=texts, blocks=blocks)

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        prepared = [ahead.submit(prepare, index) for index in indices[:1]]
        written: list[Future[None]] = []
        for position, index in enumerate(indices):
            texts, inputs = prepared.pop().result()
            prepared = [ahead.submit(prepare, i) for i in indices[position + 1 : position + 2]]
            vectors = [
                encoder.encode(given, advance)
                for encoder, given in zip(encoders, inputs, strict=True)
            ]
            for earlier in written:
                earlier.result()
            written = [behind.submit(commit, index, texts, vectors)]
        for last in written:
            last.result()


def _finish(cache: Path, plan: Plan, begun: Build) -> Manifest | None:
    records = [committed(cache, index) for index in range(len(plan.shards))]
    shards = tuple(record for record in records if record is not None)
    if len(shards) < len(records):
        return None
    for index, (record, planned) in enumerate(zip(shards, plan.shards, strict=True)):
        if record.ids_digest != planned.ids_digest:
            raise CacheError(f"{shard_path(cache, index)} holds other rows than the plan's")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        identity=begun.identity,
        rows=plan.rows,
        held_out_rows=plan.held_out_rows,
        rows_per_shard=plan.rows_per_shard,
        width=sum(block.width for block in begun.blocks),
        dtype=VECTOR_DTYPE,
        ids_digest=plan.ids_digest,
        blocks=begun.blocks,
        corpus=plan.corpus,
        counts=plan.counts,
        shards=shards,
    )
    # A finished cache has one already. It differs where lost shards came out otherwise this time.
    path = cache / MANIFEST_FILE
    if not path.exists() or Manifest.from_json(read_json(path), str(path)) != manifest:
        write_record(path, manifest)
    return manifest


def first_difference(found: Any, asked: Any, where: str) -> str | None:
    """The first place where two pieces of plain data differ, in words; None if there is none."""
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*found, *asked}):
            difference = first_difference(found.get(key), asked.get(key), f"{where}.{key}")
            if difference:
                return difference
        return None
    if isinstance(found, list) and isinstance(asked, list) and len(found) == len(asked):
        pairs = enumerate(zip(found, asked, strict=True))
        differences = (first_difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)
        return next((difference for difference in differences if difference), None)
    return None if found == asked else f"{where} is {found!r} in the cache, {asked!r} now"
