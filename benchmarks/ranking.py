"""How much faster is the exact relative-similarity loss than its literal P x P form?

    python benchmarks/ranking.py --report benchmarks/results/ranking-<hardware>-<date>.md

Both start from the same vectors (student 1,024 wide in float32, teacher 12,288 wide in float16)
and end with the loss and the gradient of the student's vectors. They take turns; the table has the
median and, for a machine that is not quiet, the fastest of the repeats. The literal form builds
every pair of pairs in float32, as the formula is written and as the paper's published code does it;
where that is more than 2^27 entries it goes through the rows in chunks, each with its own backward:
the same arithmetic in bounded memory.
Three minutes on two CPU cores; with CUDA the same script also measures a batch of 4,096.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from reports import publish
from torch import Tensor

from student.losses import TeacherBatch, relative_similarity_loss

MARGIN = 0.015
STUDENT_WIDTH, TARGET_WIDTH = 1024, 12_288
COMPARED, OURS_ALONE, OURS_ALONE_CUDA = (32, 64, 128, 256), (512, 1024), (4096,)
MATRIX_ENTRIES = 2**27
MIB = 2**20

Result = tuple[Tensor, Tensor]


def vectors(texts: int, device: str) -> tuple[Tensor, Tensor]:
    """A student halfway to its teacher; cosines cluster as those of trained models do."""
    generator = torch.Generator().manual_seed(texts)
    teacher = torch.randn(texts, TARGET_WIDTH, generator=generator)
    teacher += 1.5 * torch.randn(TARGET_WIDTH, generator=generator)
    noise = torch.randn(texts, STUDENT_WIDTH, generator=generator)
    student = teacher[:, :STUDENT_WIDTH] + noise
    return student.to(device).requires_grad_(), teacher.half().to(device)


def literal(student: Tensor, teacher: Tensor) -> Result:
    def pairs(x: Tensor) -> Tensor:
        unit = F.normalize(x.float())
        i, j = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
        return (unit @ unit.T)[i, j]

    s_graph, t = pairs(student), pairs(teacher)
    s = s_graph.detach().requires_grad_()
    terms = len(s) * (len(s) - 1) / 2
    total, gradient = torch.zeros((), device=s.device), torch.zeros_like(s)
    rows = max(1, MATRIX_ENTRIES // len(s))
    for start in range(0, len(s), rows):
        higher = slice(start, start + rows)
        hinge = (s[None, :] - s[higher, None] + MARGIN).clamp_min(0)
        loss = (hinge * (t[higher, None] > t[None, :])).sum() / terms
        gradient += torch.autograd.grad(loss, s)[0]
        total += loss.detach()
    return total, torch.autograd.grad(s_graph, student, gradient)[0]


def ours(student: Tensor, teacher: Tensor | TeacherBatch) -> Result:
    loss = relative_similarity_loss(student, teacher, MARGIN)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


METHODS: dict[str, Callable[[Tensor, Tensor], Result]] = {"literal": literal, "ours": ours}


def milliseconds(call: Callable[[], Result], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_mib(method: str, texts: int, device: str) -> float:
    """Memory that one call needs beyond its inputs, at its highest."""
    if device == "cuda":
        return _peak_bytes_cuda(method, texts) / MIB
    with get_context("spawn").Pool(1) as fresh_process:
        return fresh_process.apply(_peak_bytes_cpu, (method, texts)) / MIB


def _peak_bytes_cuda(method: str, texts: int) -> int:
    student, teacher = vectors(texts, "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    METHODS[method](student, teacher)
    return torch.cuda.max_memory_allocated() - before


def _peak_bytes_cpu(method: str, texts: int) -> int:
    def resident(field: str) -> int:
        (line,) = [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(field)
        ]
        return 1024 * int(line.split()[1])

    METHODS[method](*vectors(8, "cpu"))  # libraries load what they need on first use
    student, teacher = vectors(texts, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = resident("VmRSS")
    METHODS[method](student, teacher)
    return resident("VmHWM") - before


@dataclass
class Row:
    texts: int
    ours_ms: list[float]
    shared_ms: list[float]
    ours_mib: float
    literal_ms: list[float] | None = None
    literal_mib: float = 0
    loss_difference: float = 0


def measure(texts: int, device: str, repeats: int, compare: bool) -> Row:
    student, teacher = vectors(texts, device)
    shared = TeacherBatch(teacher)
    calls: dict[str, Callable[[], Result]] = {
        "ours": lambda: ours(student, teacher),
        "shared": lambda: ours(student, shared),
    }
    if compare:
        calls["literal"] = lambda: literal(student, teacher)
    loss = {name: call()[0].item() for name, call in calls.items()}  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(milliseconds(call, device))
    row = Row(texts, times["ours"], times["shared"], peak_mib("ours", texts, device))
    if compare:
        row.literal_ms = times["literal"]
        row.literal_mib = peak_mib("literal", texts, device)
        row.loss_difference = abs(loss["ours"] / loss["literal"] - 1)
    return row


def table(rows: list[Row]) -> str:
    lines = [
        "| batch | terms | literal, ms | ours, ms | times faster | ours, teacher shared, ms "
        "| literal, MiB | ours, MiB | losses differ by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = row.texts * (row.texts - 1) // 2
        literal_ms = ratio = literal_mib = difference = "-"
        if row.literal_ms:
            literal_ms = median_and_fastest(row.literal_ms)
            literal_mib = f"{row.literal_mib:,.0f}"
            by_median = statistics.median(row.literal_ms) / statistics.median(row.ours_ms)
            by_fastest = min(row.literal_ms) / min(row.ours_ms)
            ratio = f"{by_median:,.1f} ({by_fastest:,.1f})"
            difference = f"{row.loss_difference:.0e}"
        ours_ms, shared_ms = median_and_fastest(row.ours_ms), median_and_fastest(row.shared_ms)
        lines.append(
            f"| {row.texts} | {pairs * (pairs - 1) // 2:,} | {literal_ms} | {ours_ms} | {ratio} "
            f"| {shared_ms} | {literal_mib} | {row.ours_mib:,.0f} | {difference} |"
        )
    return "\n".join(lines)


def median_and_fastest(times: list[float]) -> str:
    return f"{statistics.median(times):,.1f} ({min(times):,.1f})"


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU cores ({platform.machine().replace('_', '-')})"


def report(rows: list[Row], device: str, repeats: int) -> str:
    return f"""# How much faster is the exact relative-similarity loss than its literal P x P form?

Hardware: {hardware(device)}. Python {platform.python_version()}, torch {torch.__version__}.
Command: `python benchmarks/ranking.py --device {device} --repeats {repeats}`

{table(rows)}

- One head, forward and backward, from vectors (student {STUDENT_WIDTH:,} wide, teacher
  {TARGET_WIDTH:,} wide) to the gradient of the student's vectors; median of {repeats}
  interleaved repeats, and in brackets the fastest: other work may share the machine.
- Literal: every pair of pairs in float32, the whole matrix up to a batch of 128; the matrices of a
  batch of 256 would take 4 GiB each, so there it goes through the rows in chunks of 2^27 entries.
- Ours is exact: the losses differ by the rounding of the literal form's float32 sum.
- "Teacher shared": a further head of the same batch, the teacher's order being there already.
- MiB: the highest use of memory of one call beyond its inputs, in a process of its own.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--report", type=Path, help="write the table with its conditions here")
    options = parser.parse_args()
    alone = OURS_ALONE + (OURS_ALONE_CUDA if options.device == "cuda" else ())
    rows = []
    for texts in COMPARED + alone:
        print(f"batch {texts} ...", file=sys.stderr)
        rows.append(measure(texts, options.device, options.repeats, compare=texts in COMPARED))
    publish(report(rows, options.device, options.repeats).splitlines(), options.report)


if __name__ == "__main__":
    main()
