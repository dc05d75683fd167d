"""All of the GPU's figures in one command and under eight minutes: phases, MoE layer, and the whole card run.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --device cpu --small

phases   at reference geometry in bf16, batches of 8 × 256 (the card's) and of 128 × 256 (enough to fill the chip),
         the card's with lean memory, too:
         seconds and tokens/s of a training step, model FLOPs utilisation (forward and backward, Muon's products not
         counted) of the data sheet's peak and of this GPU's own best matrix product, peak memory allocated, and how
         often one step makes the host wait for the device
card     `train_tinystories.py --preset reference` as a process: three phases of 100 steps, checks, checkpoints
moe      our MoE layer, Hugging Face's grouped_mm, eager and compiled, and a dense MLP of equal arithmetic at
         4 k, 16 k and 64 k tokens, random routing, as benchmarks/moe_layer.py does it

Rows are printed and written as they come. When the time is up no new row begins, and what is there is reported;
the card run is ended when it is up. A section that fails is reported, too, and the next one begins: a borrowed
GPU is too dear to lose all for one. Exit code 1 says that something failed or is missing.
"""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import moe_layer
from benchmarks.measuring import (
    VOCAB_SIZE,
    cell,
    command_parser,
    exit_code,
    find_limit,
    limit_shapes,
    machine,
    peak_bytes,
    positive_int,
    seconds_of,
    table,
    time_interleaved,
    write_json,
)
from benchmarks.moe_peers import hugging_face, make_problem, ours
from benchmarks.trainees import Trainee
from config import PRESETS, ModelConfig, TrainingConfig, UserError
from data.tokenizer import TokenizerUnavailable, load_tokenizer
from phases import HISTORY_NAME
from report.history import read_history
from training.flops import network_flops

# FLOP/s of dense bf16 products by the data sheet, by what the device's name contains.
BF16_PEAK = {"H100": 989e12, "H200": 989e12}
SYNCHRONISING = "called a synchronizing CUDA operation"
REPOSITORY = Path(__file__).parent.parent
SECTIONS = ("phases", "card", "moe")


@dataclass(frozen=True)
class Sizes:
    """What is measured: the reference geometry, or one that a CPU can run."""

    settings: TrainingConfig
    vocab_size: int
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    card: tuple[str, ...]


REFERENCE = Sizes(
    PRESETS["reference"], VOCAB_SIZE["reference"], (8, 128), (832, 1664), (4096, 16384, 65536),
    ("--preset", "reference"),
)  # fmt: skip
SMALL = Sizes(
    TrainingConfig(context_length=16, d_model=16, n_layers=1, n_heads=2, extra_layers=1), 97, (1, 2), (16,), (32, 64),
    tuple(
        "--preset tiny --precision fp32 --context-length 16 --batch-size 2 --d-model 16 --n-layers 1 --n-heads 2 "
        "--extra-layers 1 --steps-phase1 2 --steps-phase2 2 --steps-phase3 2 --eval-batches 1 --sample-tokens 4".split()
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every section needs to know."""

    sizes: Sizes
    device: torch.device
    shapes: list[tuple[int, int, int]]  # of products that may be this device's fastest
    fastest_product: float  # FLOP/s, bf16
    data: str
    ends: float  # by time.monotonic()

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()


def phases(bench: Bench) -> Iterator[dict]:
    """One row per phase and batch size."""
    sizes, device = bench.sizes, bench.device
    peak = next((peak for name, peak in BF16_PEAK.items() if name in machine(device)["device"]), None)
    for phase, geometry in enumerate(sizes.settings.phase_geometries(sizes.vocab_size), 1):
        for batch_size, memory in ((sizes.batches[0], "lean"), *((batch, "full") for batch in sizes.batches)):
            figures = phase_figures(geometry, batch_size, memory == "lean", bench, peak)
            yield {"phase": phase, "batch": batch_size, "memory": memory} | figures


def phase_figures(geometry: ModelConfig, batch_size: int, is_lean: bool, bench: Bench, peak: float | None) -> dict:
    device = bench.device
    if device.type == "cuda":
        # What the row before held would count as this one's.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    tokens_BT = torch.randint(geometry.vocab_size, (batch_size, geometry.context_length + 1)).to(device)
    trainee = Trainee(geometry, tokens_BT, bench.sizes.settings, torch.bfloat16, is_lean)
    first = seconds_of(trainee, 1, device)
    timing = time_interleaved({"step": trainee}, device)["step"]
    rate = network_flops(geometry, batch_size) / timing.seconds
    places = synchronisations(trainee, device)
    return {
        "first s": first,
        "seconds": timing.seconds,
        "spread": timing.spread,
        "tokens/s": batch_size * geometry.context_length / timing.seconds,
        "TFLOP/s": rate / 1e12,
        "MFU": rate / peak if peak else None,
        # Timed alone: beside the step its operands would count as the phase's memory.
        "of fastest product": rate / bench.fastest_product,
        "peak GB": peak_bytes(device) / 1e9,
        "syncs": None if places is None else len(places),
        "syncs at": "not applicable" if places is None else "; ".join(sorted(set(places))),
    }


def synchronisations(call: Callable[[], object], device: torch.device) -> list[str] | None:
    """Where one call made the host wait for the device, "file:line" each; None on a device without streams."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return places_of(caught)


def places_of(caught: list[warnings.WarningMessage]) -> list[str]:
    """The places of those warnings that speak of synchronisation."""
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if SYNCHRONISING in str(w.message)]


def moe(bench: Bench) -> Iterator[dict]:
    """One row per width and number of tokens."""
    contenders = {"ours": ours, "HF grouped_mm": functools.partial(hugging_face, implementation="grouped_mm")}
    compiled = functools.partial(hugging_face, implementation="grouped_mm", compiled=True)
    try:
        expert_Nk = moe_layer.routings(64)["random"]
        compiled(make_problem(16, expert_Nk, moe_layer.N_EXPERTS, torch.bfloat16, bench.device))()
        contenders["HF compiled"] = compiled
    except Exception:  # a compiler fails in ways of its own, and the other contenders do not need it
        traceback.print_exc()
        print("HF compiled is left out: torch.compile failed")
    limit = find_limit(torch.bfloat16, bench.device, bench.shapes)
    for n_tokens in bench.sizes.tokens:
        for width in bench.sizes.widths:
            expert_Nk = moe_layer.routings(n_tokens)["random"]
            row = moe_layer.measure(width, "bf16", "random", expert_Nk, limit, bench.device, contenders)
            yield {"tokens": n_tokens} | row | {"ours / HF": row["HF grouped_mm ms"] / row["ours ms"]}


def card(bench: Bench) -> Iterator[dict]:
    """One row: the run as a user starts it, with tokens that are not cached yet.

    Raises:
        RuntimeError: it failed, or the time was up.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "train_tinystories.py", *bench.sizes.card, "--device", bench.device.type,
            "--data", bench.data, "--tokenizer", tokenizer_name(), "--checkpoint-dir", f"{folder}/run",
            "--cache-dir", f"{folder}/tokens",
        ]  # fmt: skip
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=REPOSITORY, capture_output=True, text=True, timeout=max(1.0, bench.seconds_left())
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError("the time was up before the card run ended") from None
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"the card run ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        rows = read_history(Path(folder, "run", HISTORY_NAME))
    yield {"seconds": seconds} | card_figures(rows)


def tokenizer_name() -> str:
    """gpt2, as on the card, where it can be had."""
    try:
        load_tokenizer("gpt2")
        return "gpt2"
    except TokenizerUnavailable:
        return "builtin"


def card_figures(rows: list[dict]) -> dict:
    """What the history says of a finished run; what is no step is checks, evaluation, growth and files."""
    by_event: dict[str, list[dict]] = {}
    for row in rows:
        by_event.setdefault(row["event"], []).append(row)
    summary = by_event["summary"][0]
    steps = {phase: [row for row in by_event["step"] if row["phase"] == phase] for phase in (1, 2, 3)}
    return {
        "without imports": summary["seconds"],
        **{f"phase {phase} s": phase_rows[-1]["seconds"] for phase, phase_rows in steps.items()},
        "checks passed": f"{sum(row['passed'] for row in by_event['verification'])}/{len(by_event['verification'])}",
        "jump 1-2": summary["jump12"],
        "jump 2-3": summary["jump23"],
        "final loss": summary["phase3_final"],
    }


def run_section(name: str, bench: Bench, rows: list[dict], report: Callable[[], None]) -> str:
    """Adds the section's rows, reporting after each; returns what is wrong, or nothing."""
    section = {"phases": phases, "card": card, "moe": moe}[name](bench)
    while True:
        if bench.seconds_left() <= 0:
            return "stopped: the time was up"
        try:
            rows.append(next(section))
        except StopIteration:
            return ""
        except Exception as error:
            traceback.print_exc()
            return f"failed: {' '.join(str(error).split())[:500]}"
        print(f"{name}: {', '.join(f'{key} {cell(value)}' for key, value in rows[-1].items())}", flush=True)
        report()


def run(given: list[str] | None) -> int:
    parser = command_parser("gpu", __doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes: does every path run?")
    parser.add_argument("--data", default="builtin", help="stories of the card run, as train_tinystories.py takes them")
    parser.add_argument("--seconds", type=positive_int, default=440, help="begin nothing new after that, default 440")
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"default {','.join(SECTIONS)}")
    arguments = parser.parse_args(given)
    sections = arguments.sections.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"unknown section {unknown.pop()!r}; there are {', '.join(SECTIONS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine or this torch has no CUDA; --device cpu --small tries the code")
    ends = time.monotonic() + arguments.seconds
    device, sizes = torch.device(arguments.device), SMALL if arguments.small else REFERENCE
    settings = sizes.settings
    shapes = limit_shapes(sizes.batches[-1] * settings.context_length, int(settings.scale_factor * settings.d_model))
    fastest = find_limit(torch.bfloat16, device, shapes).best
    bench = Bench(sizes, device, shapes, fastest, arguments.data, ends)
    figures: dict = {"machine": machine(device), "fastest_product": fastest, "problems": {}}
    for name in sections:
        rows = figures[name] = []
        problem = run_section(name, bench, rows, lambda: write_json(arguments.json, figures))
        if problem:
            figures["problems"][name] = problem
    for name in sections:
        print(f"\n{name} {figures['problems'].get(name, '')}".rstrip())
        if figures[name]:
            print(table(figures[name]))
    print(f"Limit: this device's best bf16 matrix product, {fastest / 1e12:,.1f} TFLOP/s")
    write_json(arguments.json, figures)
    return 1 if figures["problems"] else 0


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
