"""The planned peak of memory beside the measured one, phase by phase.

    python -m benchmarks.memory --json memory.json                      the reference card, lean: 12 GB, minutes a step
    python -m benchmarks.memory --preset tiny --memory full

Each phase trains a few steps in a process of its own, on random weights and tokens, and with what a run has
beside the model: optimizers, and the watch over new parameters. The peak of a CPU is the process's
largest resident memory, that of CUDA the largest that torch allocated.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import torch

from benchmarks.measuring import (
    VOCAB_SIZE,
    command_parser,
    exit_code,
    in_fresh_process,
    int_list,
    machine,
    peak_bytes,
    positive_int,
    table,
    write_json,
)
from config import PRESETS, TrainingConfig
from models import Transformer
from phases import phase_of
from training.device import pick_device
from training.flops import network_flops, optimizer_flops
from training.machine import GB, Machine
from training.memory import PhaseMemory
from training.plan import make_plan
from training.step import prepare_training, train_step
from transfer.gradient_coverage import GradientCoverage


def train_phase(config: TrainingConfig, phase: int, steps: int) -> dict:
    """Peak in GB, seconds of each step and final loss of one phase; meant for a process of its own."""
    device = pick_device(config.device)
    compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
    plan = make_plan(config, config.dense_geometry(VOCAB_SIZE[config.preset]), Machine.now(device, compute_dtype))
    model = Transformer.empty(plan.models[phase - 1], device).initialise(torch.Generator().manual_seed(0))
    coverage = GradientCoverage(model, plan.models[phase - 2]) if phase > 1 else None
    optimizers = prepare_training(model, config, compute_dtype, plan.is_lean)
    generator = torch.Generator().manual_seed(0)
    seconds, losses = [], []
    for _ in range(steps):
        shape = (config.batch_size, config.context_length + 1)
        tokens_BT = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
        start = time.perf_counter()
        losses.append(train_step(model, optimizers, tokens_BT, config.learning_rate(phase), config)[0].item())
        seconds.append(time.perf_counter() - start)
    if coverage:
        coverage.close()
    return {"peak_gb": peak_bytes(device) / GB, "seconds": [round(s, 2) for s in seconds], "losses": losses}


def planned_gb(memory: PhaseMemory, device: torch.device) -> float:
    """CUDA's allocator knows nothing of the process around it."""
    return (memory.peak - (memory.process if device.type == "cuda" else 0)) / GB


def run(given: list[str] | None) -> None:
    parser = command_parser("memory", __doc__.splitlines()[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="reference")
    parser.add_argument("--memory", choices=("auto", "full", "lean"), default="lean")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--phases", type=int_list, default=[1, 2, 3], help="which phases, as in 1,3 (default: all)")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="sequences a step (default: the preset's)")
    parser.add_argument("--steps", type=positive_int, default=3, metavar="N", help="steps of each phase (default: 3)")
    arguments = parser.parse_args(given)
    if not set(arguments.phases) <= {1, 2, 3}:
        parser.error(f"--phases {','.join(map(str, arguments.phases))}: there are phases 1, 2 and 3")
    preset = PRESETS[arguments.preset]
    config = dataclasses.replace(
        preset, memory=arguments.memory, precision=arguments.precision, device=arguments.device,
        batch_size=arguments.batch_size or preset.batch_size,
    )  # fmt: skip
    config.validate()
    device = pick_device(config.device)
    compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
    plan = make_plan(config, config.dense_geometry(VOCAB_SIZE[config.preset]), Machine.now(device, compute_dtype))
    rows = []
    for phase in arguments.phases:
        result = in_fresh_process(train_phase, config, phase, arguments.steps)
        planned, model = planned_gb(plan.memory[phase - 1], device), plan.models[phase - 1]
        network = network_flops(model, config.batch_size)
        optimizer = optimizer_flops(model, config.batch_size, compute_dtype or torch.float32)
        rows.append(
            {
                "phase": f"{phase} {phase_of(phase).short}",
                "planned GB": planned,
                "measured GB": result["peak_gb"],
                "ratio": planned / result["peak_gb"],
                "Muon's share of FLOPs": optimizer / (network + optimizer),
                "seconds a step": " ".join(f"{seconds:.1f}" for seconds in result["seconds"]),
                "losses": " ".join(f"{loss:.3f}" for loss in result["losses"]),
            }
        )
        # A phase takes minutes: each is told as it comes.
        print(table(rows[-1:]), flush=True)
    print("\n" + table(rows))
    write_json(arguments.json, {"machine": machine(device), "config": dataclasses.asdict(config), "phases": rows})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
