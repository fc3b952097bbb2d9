"""Plan → missing shards → encode → commit → manifest. A build that resumes takes the same path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.corpus import Corpus
from teacher_cache.begun import begin, read_begun
from teacher_cache.encoders.device import check_device
from teacher_cache.files import remove_leftovers
from teacher_cache.finish import Build, Phase, check_new, finish, first_difference, silent
from teacher_cache.format import (
    ROWS_PER_SHARD,
    Block,
    CacheError,
    Manifest,
    Plan,
    Pooled,
    ShardFormat,
    is_folder_name,
)
from teacher_cache.golden import Golden, read_goldens
from teacher_cache.located import Located, blocks_of, fit, load, locate
from teacher_cache.plan import corpus_facts, make_plan, read_plan
from teacher_cache.plan_progress import clear_progress
from teacher_cache.ranks import Rank, awaited, wait_for
from teacher_cache.shard_job import ShardJob, encode_shards
from teacher_cache.teachers import DEFAULT_PROMPT, Teacher
from teacher_cache.writer import committed


@dataclass(frozen=True, slots=True)
class Options:
    """How a build runs, as opposed to what it builds: none of this enters the identity.

    `token_budget` is the number of padded tokens in a batch (None: by device). `goldens` are golden
    files of the build's teachers: who is about to encode must give their vectors first.
    `shard_format` None is the one a build was begun with, Arrow for a new one.
    """

    rank: Rank = field(default_factory=Rank)
    device: str = "cpu"
    token_budget: int | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    goldens: tuple[Path, ...] = ()
    shard_format: ShardFormat | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is left of a build once it is planned: these shards, under these teachers.

    `begun` is None where no shard was encoded yet: the widths of the teachers' vectors are known
    when they are loaded, and `begin` then settles the cache's identity.
    """

    cache: Path
    plan: Plan
    shards: Sequence[int]
    found: Sequence[Located]
    begun: Build | None
    goldens: Sequence[Golden]
    options: Options
    phase: Phase

    @property
    def work(self) -> int:
        """Texts to encode, each once for every teacher."""
        return sum(self.plan.shards[index].rows for index in self.shards) * len(self.found)

    def begin(self, blocks: Sequence[Block], pooled: Pooled | None) -> Build:
        """Write down under which teachers the shards are encoded, unless that was done.

        Raises:
            CacheError: that was done, and under others.
        """
        shard_format = self.options.shard_format
        return begin(self.cache, self.plan, self.found, blocks, pooled, shard_format)


Engine = Callable[[Task], Build]
"""Who encodes the shards of a task: this process, or a cluster (`teacher_cache.ray_engine`)."""


def encode_here(task: Task) -> Build:
    """The engine that every rank of a launcher is: load the teachers, encode shard after shard."""
    options = task.options
    encoders = load(
        task.found, task.goldens, device=options.device, token_budget=options.token_budget
    )
    begun = task.begin(*blocks_of(task.found, encoders))
    teachers = [one.teacher for one in task.found]
    job = ShardJob(task.cache, task.plan, begun.identity, teachers, encoders, begun.shard_format)
    with task.phase("encoding", task.work) as advance:
        encode_shards(job, task.shards, advance)
    return begun


def build(
    cache: Path,
    corpus: Corpus,
    teachers: Sequence[Teacher],
    *,
    base: Path = Path(),
    options: Options = Options(),
    phase: Phase = silent,
    engine: Engine = encode_here,
) -> Manifest | None:
    """Build a cache, or finish one that was begun; a finished one is checked and returned.

    Rank 0 plans and every rank encodes its own shards, `index % world`; the rank that commits the
    last missing shard writes the manifest. Relative folders of teachers are seen from `base`.
    Gives None to a rank that finished while others still work.

    Raises:
        CacheError: the folder holds a cache of another corpus or of other teachers.
        TeacherError: there is no such device; or a teacher cannot be found, loaded, gives vectors
            that are no vectors, or others than a golden file's.
        CorpusError: the corpus cannot be read.
    """
    _check_names(teachers, corpus)
    if engine is encode_here:
        # A cluster's nodes have devices that this one may lack.
        check_device(options.device)
    goldens = read_goldens(options.goldens, teachers)
    found = [locate(teacher, base) for teacher in teachers]
    plan = _plan(cache, corpus, options, phase)
    # What can be refused is refused before a teacher is fitted.
    read_begun(cache, found, options.shard_format)
    found = [fit(one, cache, plan, options.rank) for one in found]
    return complete(cache, plan, found, goldens, options=options, phase=phase, engine=engine)


def complete(
    cache: Path,
    plan: Plan,
    found: Sequence[Located],
    goldens: Sequence[Golden],
    *,
    options: Options,
    phase: Phase,
    engine: Engine = encode_here,
) -> Manifest | None:
    """Encode the shards of a planned cache that are missing, and write the manifest.

    Raises:
        CacheError: it was begun with other teachers.
        TeacherError: a teacher cannot be loaded, or gives vectors that are none.
    """
    begun = read_begun(cache, found, options.shard_format)
    remove_leftovers(cache)
    missing = [i for i in range(len(plan.shards)) if committed(cache, i) is None]
    mine = [i for i in missing if i % options.rank.world == options.rank.index]
    if mine or begun is None:
        begun = engine(Task(cache, plan, mine, found, begun, goldens, options, phase))
    return finish(cache, plan, begun)


def _check_names(teachers: Sequence[Teacher], corpus: Corpus) -> None:
    names = [teacher.name for teacher in teachers]
    if not names or len(set(names)) != len(names):
        raise CacheError(f"expected one or more teachers of different names, found {names}")
    hidden = [name for name in names if not is_folder_name(name)]
    if hidden:
        raise CacheError(f"expected the names of teachers to be those of folders, found {hidden}")
    keepers = [teacher.name for teacher in teachers if teacher.keep_pooled]
    if len(keepers) > 1:
        raise CacheError(
            f"a cache keeps the pooled state of one teacher, asked for {' and '.join(keepers)}; "
            "keep that of the student's initialisation"
        )
    sources = [source.name for source in corpus.spec.sources]
    for teacher in teachers:
        unknown = sorted(set(teacher.prompts) - {*sources, DEFAULT_PROMPT})
        if unknown:
            raise CacheError(
                f"teacher {teacher.name!r} has a prompt for the source {unknown[0]!r}, which the "
                f"corpus has not; it has {', '.join(sources)} (and {DEFAULT_PROMPT!r} is for all)"
            )


def _plan(cache: Path, corpus: Corpus, options: Options, phase: Phase) -> Plan:
    plan = read_plan(cache)
    if plan is None and options.rank.index == 0:
        check_new(cache)
        with awaited(options.rank, cache), phase("planning", corpus.spec.texts) as advance:
            plan = make_plan(cache, corpus, rows_per_shard=options.rows_per_shard, on_text=advance)
    elif options.rank.index == 0:
        clear_progress(cache)  # of a planner that died between its last two steps
    if plan is None:
        plan = wait_for("plan", cache, lambda: read_plan(cache))
    difference = first_difference(dict(plan.corpus), dict(corpus_facts(corpus)), "corpus")
    if difference:
        raise CacheError(
            f"{cache} was planned from another corpus: {difference}; "
            "build into another folder, or with the recipe it was begun with"
        )
    return plan
