"""What the default command does on the machines that people have, and how long: computed, not measured.

    python -m benchmarks.machines

The memory is what the system lets a GPU use: of a Mac its recommended working set, as torch reports it (two thirds to
three quarters of the machine); of a card all but 1 GB for the display and CUDA, which is assumed.

A time is the run's FLOPs over the rate at which the device multiplies matrices, and its memory traffic over the
bandwidth: published rates and assumed traffic, see docs/BENCHMARKS.md.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from benchmarks.measuring import command_parser, exit_code, write_json
from config import PRESETS, ModelConfig
from models import count_parameters
from phases import PHASES
from run.console import in_words
from training.flops import network_flops, optimizer_flops
from training.machine import GB, SYSTEM_BYTES, Machine
from training.plan import Plan, make_plan

VOCABULARY = 50_257
# Read and written a step for each parameter, by the passes and by the optimizer; assumed.
TRAFFIC_BYTES = 124
# What training reaches of the peak that a card's maker names; assumed. A Mac's rates are measured ones.
PEAK_SHARE = 0.4
# Of a card's memory, in GB; assumed.
DISPLAY_AND_CUDA = 1.0


class Device(NamedTuple):
    """`usable` is in GB, `size` in GiB, by which it is sold."""

    name: str
    kind: str
    usable: float
    size: int


class Processor(NamedTuple):
    """What computes: the rate of its matrix products in TFLOP/s, in the precision that is faster there, and its memory's
    bandwidth in GB/s."""

    name: str
    rate: float
    dtype: torch.dtype
    bandwidth: float


DEVICES = (
    Device("Mac, 8 GB", "mps", 5.73, 8),
    Device("Mac, 16 GB", "mps", 11.45, 16),
    Device("Mac, 24 GB", "mps", 17.18, 24),
    Device("Mac, 24 GB, newer system", "mps", 19.07, 24),
    Device("Mac, 32 GB", "mps", 22.91, 32),
    Device("Mac, 36 GB", "mps", 28.99, 36),
    Device("Mac, 48 GB", "mps", 38.65, 48),
    Device("Mac, 64 GB", "mps", 51.54, 64),
    *(
        Device(f"GPU, {size} GB", "cuda", round(size * 2**30 / GB - DISPLAY_AND_CUDA, 1), size)
        for size in (8, 12, 16, 24, 32, 48, 80)
    ),
)

PROCESSORS = (
    Processor("M1", 1.4, torch.float32, 68),
    Processor("M2", 2.2, torch.float32, 100),
    Processor("M4", 2.9, torch.float32, 120),
    Processor("RTX 3090", PEAK_SHARE * 71, torch.bfloat16, 936),
    Processor("RTX 4090", PEAK_SHARE * 165, torch.bfloat16, 1008),
    Processor("H200", PEAK_SHARE * 989, torch.bfloat16, 4800),
)


def machine_of(device: Device) -> Machine:
    beyond = device.size * 2**30 - SYSTEM_BYTES - device.usable * GB if device.kind == "mps" else 0.0
    return Machine(torch.device(device.kind), torch.bfloat16, available=device.usable * GB, beyond=max(0.0, beyond))


def plan_of(device: Device) -> Plan:
    config = PRESETS["reference"]
    return make_plan(config, config.dense_geometry(VOCABULARY), machine_of(device))


def outcome(device: Device) -> str:
    """What the default command does there: "full", "lean", or "warned" or "refused" with the flags that fit."""
    plan = plan_of(device)
    if plan.advice:
        return f"{'refused' if plan.is_refused else 'warned'}: {plan.way}"
    return "lean" if plan.is_lean else "full"


def machine_row(device: Device) -> list[str]:
    plan, (kind, _, flags) = plan_of(device), outcome(device).partition(": ")
    runs = f"{'lean' if plan.is_lean else 'full'} memory, {plan.peak / GB:.1f} GB at the peak"
    said = {
        "full": f"runs, {runs}",
        "lean": f"runs, {runs}",
        "warned": f"runs slower than it could, {runs}; with `{flags}` as it should",
        "refused": f"is refused; `{flags}` fits",
    }
    return [device.name, f"{device.usable:g} GB", said[kind]]


def seconds_of_phases(processor: Processor) -> list[float]:
    """Of the reference preset: what is multiplied, and what is read and written besides."""
    config = PRESETS["reference"]

    def seconds(model: ModelConfig) -> float:
        flops = network_flops(model, config.batch_size) + optimizer_flops(model, config.batch_size, processor.dtype)
        traffic = TRAFFIC_BYTES * count_parameters(model).total
        return flops / processor.rate / 1e12 + traffic / processor.bandwidth / GB

    models = config.phase_geometries(VOCABULARY)
    return [config.steps(phase.number) * seconds(model) for phase, model in zip(PHASES, models)]


def time_row(processor: Processor) -> list[str]:
    seconds = seconds_of_phases(processor)
    precision = "bf16" if processor.dtype is torch.bfloat16 else "fp32"
    rates = [f"{processor.rate:.3g} TFLOP/s, {precision}", f"{processor.bandwidth:,} GB/s"]
    return [processor.name, *rates, *(f"{in_words(s)}" for s in (*seconds, sum(seconds)))]


def tables() -> str:
    machines = [["machine", "usable", "`python train_tinystories.py`"], *map(machine_row, DEVICES)]
    times = [["processor", "products", "memory", *(f"phase {phase.number}" for phase in PHASES), "all"]]
    times += map(time_row, PROCESSORS)
    return "\n\n".join(
        "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
        for head, *rows in (machines, times)
    )


def run(arguments: list[str] | None = None) -> None:
    given = command_parser("machines", __doc__.splitlines()[0]).parse_args(arguments)
    print(tables())
    times = {processor.name: seconds_of_phases(processor) for processor in PROCESSORS}
    write_json(given.json, {"machines": {device.name: outcome(device) for device in DEVICES}, "seconds": times})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
