"""How time and memory of one training step grow with its sizes, beside what the arithmetic says; and the data's.

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --data ../shared/tinystories/train.txt

A small MoE in fp32 is trained at several values of one size at a time: tokens per step, context (at the same
tokens per step), experts, width (at the same head_dim), depth. Every point has a process of its own. Exponents
are least-squares fits by logarithms over all points, "at the end" over the two largest alone, where what does
not grow no longer hides what does. Beside seconds stand the FLOPs of training/flops.py, beside bytes those of
training/plan.py, fitted in the same way over the same points.

FLOPs say nothing of what only moves bytes: with more experts the arithmetic stays, while the gradients and
momenta of all of them are still read and written at each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks import trainees
from benchmarks.measuring import (
    command_parser,
    exit_code,
    exponent,
    in_fresh_process,
    machine,
    peak_bytes,
    table,
    time_interleaved,
    write_json,
)
from benchmarks.scaling_data import measure_data
from config import ModelConfig, TrainingConfig
from training.flops import step_flops
from training.plan import Machine, phase_memory

CPU = torch.device("cpu")
VOCABULARY, HEAD_DIM = 512, 32
BASE = {"width": 128, "depth": 2, "experts": 8, "context": 128, "tokens": 1024}
AXES = {
    "tokens": (256, 512, 1024, 2048, 4096),
    "context": (64, 128, 256, 512, 1024),
    "experts": (2, 4, 8, 16, 32),
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8, 16),
}


def geometry(sizes: dict[str, int]) -> tuple[ModelConfig, int]:
    """The model and the batch size of one point."""
    width, context = sizes["width"], sizes["context"]
    config = ModelConfig(
        VOCABULARY, width, sizes["depth"], width // HEAD_DIM, sizes["experts"], top_k=2, context_length=context
    )
    return config, sizes["tokens"] // context


def measure_step(config: ModelConfig, batch_size: int) -> dict[str, float]:
    """Seconds of the fastest training step, the bytes that it adds to the process, and what was predicted of both."""
    train(ModelConfig(VOCABULARY, HEAD_DIM, 1, 1, 2, context_length=8), batch_size=1)  # threads and kernels are there
    before = peak_bytes(CPU)
    timing = train(config, batch_size)
    plan = phase_memory(config, batch_size * config.context_length, Machine(CPU), is_lean=False)
    return {
        # The fastest: points are measured minutes apart, and what else a machine does only adds.
        "seconds": min(timing.samples),
        "spread": timing.spread,
        "bytes": peak_bytes(CPU) - before,
        "flops": step_flops(config, batch_size),
        "planned bytes": plan.peak - plan.process,
    }


def train(config: ModelConfig, batch_size: int):
    """The timing of training steps on one batch of random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch_size, config.context_length + 1), generator=generator)
    trainee = trainees.ours(trainees.our_model(config), tokens, TrainingConfig(), torch.float32)
    return time_interleaved({"step": trainee}, CPU)["step"]


def measure_axis(axis: str) -> list[dict]:
    """One row per value of one size, all others at `BASE`."""
    rows = []
    for value in AXES[axis]:
        row = in_fresh_process(measure_step, *geometry(BASE | {axis: value}))
        rows.append({"axis": axis, "value": value} | row)
    return rows


def fits(rows: list[dict]) -> dict:
    """One axis's exponents, measured and predicted."""
    sizes = [row["value"] for row in rows]
    fitted: dict = {"axis": rows[0]["axis"], "from": sizes[0], "to": sizes[-1]}
    for name, key in (("time", "seconds"), ("FLOPs", "flops"), ("memory", "bytes"), ("plan", "planned bytes")):
        values = [row[key] for row in rows]
        fitted[name] = exponent(sizes, values)
        fitted[f"{name} at the end"] = exponent(sizes[-2:], values[-2:])
    return fitted


def run(given: list[str] | None) -> None:
    parser = command_parser("scaling", __doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FILE", help="stories to tokenise, default: the built-in ones")
    arguments = parser.parse_args(given)
    data = measure_data(arguments.data)
    rows = [row for axis in AXES for row in measure_axis(axis)]
    exponents = [fits([row for row in rows if row["axis"] == axis]) for axis in AXES]
    print(table(rows))
    print("\nExponents\n" + table(exponents))
    print("\nData")
    for name, value in data.items():
        print(f"{name}: {value}")
    write_json(arguments.json, {"machine": machine(CPU), "points": rows, "exponents": exponents, "data": data})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
