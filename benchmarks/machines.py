"""What the default command does on the machines that people have: computed from the memory plan, not measured.

    python -m benchmarks.machines

The memory is what the system lets a GPU use: of a Mac about two thirds, or three quarters (what torch reports as the
recommended working set); of a card all but what the display and CUDA take. A time is the run's FLOPs over a rate that
is assumed for the device.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from benchmarks.measuring import command_parser, exit_code, write_json
from config import PRESETS
from run.console import in_words
from training.flops import step_flops
from training.machine import GB, Machine
from training.plan import make_plan

VOCABULARY = 50_257


class Device(NamedTuple):
    name: str
    kind: str
    usable: float  # GB
    rate: float  # TFLOP/s, assumed


DEVICES = (
    Device("Mac, 8 GB", "mps", 5.7, 2.0),
    Device("Mac, 16 GB", "mps", 11.45, 2.5),
    Device("Mac, 24 GB", "mps", 17.18, 2.5),
    Device("Mac, 24 GB, newer system", "mps", 19.07, 3.0),
    Device("Mac, 36 GB", "mps", 27.0, 5.0),
    Device("Mac, 64 GB", "mps", 48.0, 8.0),
    Device("GPU, 8 GB", "cuda", 7.5, 15),
    Device("GPU, 12 GB", "cuda", 11.3, 25),
    Device("GPU, 16 GB", "cuda", 15.2, 35),
    Device("GPU, 24 GB", "cuda", 23.0, 60),
    Device("GPU, 48 GB", "cuda", 46.5, 80),
    Device("GPU, 80 GB", "cuda", 79.0, 250),
)


def row(device: Device) -> list[str]:
    """What happens there: whether the run starts, its memory at the peak, its time; or what the plan proposes."""
    config = PRESETS["reference"]
    machine = Machine(torch.device(device.kind), torch.bfloat16, available=device.usable * GB)
    plan = make_plan(config, config.dense_geometry(VOCABULARY), machine)
    if plan.advice:
        way = plan.advice.split(". ", 1)[1]
        return [
            device.name,
            f"{device.usable:g} GB",
            f"is refused; `{way.replace(' needs', '` needs')}" * ("needs" in way) or way,
            "",
        ]
    flops = sum(config.steps(n) * step_flops(model, config.batch_size) for n, model in enumerate(plan.models, 1))
    memory = f"runs, {'lean' if plan.is_lean else 'full'} memory, {plan.peak / GB:.1f} GB at the peak"
    return [
        device.name,
        f"{device.usable:g} GB",
        memory,
        f"{in_words(flops / device.rate / 1e12)} at {device.rate:g} TFLOP/s",
    ]


def table() -> str:
    head = ["machine", "usable", "`python train_tinystories.py`", "about"]
    rows = [head, ["---"] * len(head), *(row(device) for device in DEVICES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def run(arguments: list[str] | None = None) -> None:
    given = command_parser("machines", __doc__.splitlines()[0]).parse_args(arguments)
    print(table())
    write_json(given.json, {"machines": [row(device) for device in DEVICES]})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
