"""What the benchmarks share: fair timing, this machine's limit, its description, tables and JSON files."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from command_line import OneLineParser, run_command
from config import UserError
from run.facts import git_commit
from training.allocator import hand_out_large_blocks

ROUNDS = 5
# Shorter samples would measure the clock and the scheduler.
SAMPLE_SECONDS = 0.05
VOCAB_SIZE = {"reference": 50_257, "tiny": 4_097}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, sampled once per round."""

    samples: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Slowest minus fastest sample, as a share of the median."""
        return (max(self.samples) - min(self.samples)) / self.seconds


def time_interleaved(
    contenders: dict[str, Callable[[], object]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Times all contenders in each round, so that a machine that slows down does so for all of them.

    Every round starts with another contender: who comes after whom decides what the caches hold.
    Two calls of each come first, unmeasured; a sample is as many calls as fill `SAMPLE_SECONDS`.
    """
    calls = {}
    for name, call in contenders.items():
        seconds_of(call, 1, device)
        calls[name] = max(1, math.ceil(SAMPLE_SECONDS / seconds_of(call, 1, device)))
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(rounds), desc="Rounds", leave=False, disable=None):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(seconds_of(contenders[name], calls[name], device))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def seconds_of(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one call, averaged over `times` calls in a row; waits for the device."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Limit:
    """This machine's fastest matrix product. It is timed among the contenders, for what a machine can do changes
    within seconds where others compute on the same chip, or where it grows hot."""

    flops: float  # of one call
    call: Callable[[], object]
    best: float  # FLOP/s of its fastest sample

    def rate(self, timing: Timing) -> float:
        """FLOP/s in the rounds in which it took part, as `LIMIT`."""
        return self.flops / timing.seconds


LIMIT = "limit"


def find_limit(dtype: torch.dtype, device: torch.device, shapes: list[tuple[int, int, int]]) -> Limit:
    """The fastest product (m, k) · (n, k)ᵀ among `shapes` (m, k, n)."""
    products = {}
    for m, k, n in shapes:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(rows, k, generator=generator).to(device, dtype) for rows in (m, n))
        products[m, k, n] = lambda a=a, b=b: a @ b.T
    found = []
    for shape, timing in time_interleaved(products, device).items():
        flops = 2.0 * math.prod(shape)
        found.append(Limit(flops, products[shape], flops / min(timing.samples)))
    return max(found, key=lambda limit: limit.best)


def limit_shapes(tokens: int, d_model: int) -> list[tuple[int, int, int]]:
    """Squares about as large as the model's products, and the products of its MLP themselves."""
    square = 1 << round(math.log2((tokens * d_model * 4 * d_model) ** (1 / 3)))
    squares = [(size, size, size) for size in (square // 2, square, square * 2)]
    return [*squares, (tokens, d_model, 4 * d_model), (tokens, 4 * d_model, d_model)]


def peak_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            # Not getrusage where there is this: a child process would begin with the peak of its parent.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_fresh_process(function: Callable, *arguments):
    """The function's result, computed in a process of its own: peaks of memory never fall again."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=hand_out_large_blocks) as pool:
        return pool.submit(function, *arguments).result()


def machine(device: torch.device) -> dict:
    """What a figure depends on, besides the command that measured it."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "python": platform.python_version(),
        "commit": git_commit(),
        "command": shlex.join(sys.orig_argv[1:]),
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(rows: list[dict]) -> str:
    """Rows of equal keys as plain text: one line of heads, numbers to the right, text to the left."""
    heads = list(rows[0])
    cells = [heads] + [[cell(row[head]) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    is_text = [isinstance(rows[0][head], str) for head in heads]
    lines = []
    for line in cells:
        padded = (f"{c:<{w}}" if text else f"{c:>{w}}" for c, w, text in zip(line, widths, is_text))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def command_parser(name: str, description: str) -> OneLineParser:
    """The parser of `python -m benchmarks.NAME`, with the flag that all of them have."""
    parser = OneLineParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all figures there, too")
    return parser


def output_file(text: str) -> Path:
    """A file that can be written, tried before anything is measured."""
    path = Path(text)
    try:
        with path.open("a"):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {path}: {error.strerror}") from error


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def int_list(text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def dtype_list(text: str) -> list[str]:
    """Names of `DTYPES`, separated by commas."""
    names = text.split(",")
    for name in names:
        if name not in DTYPES:
            raise argparse.ArgumentTypeError(f"{name!r} is no dtype; choose among {', '.join(DTYPES)}")
    return names


def write_json(path: Path | None, figures: dict) -> None:
    """Writes nothing without a path.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def exit_code(run: Callable[[list[str] | None], int | None], arguments: list[str] | None) -> int:
    """Runs a benchmark's command: its own exit code, or 2 and one line for a mistake in what was given."""
    hand_out_large_blocks()
    return run_command(lambda: run(arguments), "a smaller --preset, or fewer of what is measured")
