"""The planned peak of memory beside the measured one, phase by phase.

    python -m benchmarks.memory --json memory.json                      the reference card, lean: 18 GB, minutes a step
    python -m benchmarks.memory --preset tiny --memory full

Each phase trains a few steps in a process of its own, on random weights and tokens, and with what a run has
beside the model: optimizers, and the watch over new parameters. The peak of a CPU is the process's
largest resident memory, that of CUDA the largest that torch allocated.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import sys
import time

import torch

from command_line import OneLineParser
from config import PRESETS, TrainingConfig, UserError
from models import Transformer
from training.device import pick_device
from training.plan import GB, PhaseMemory, make_plan
from training.step import prepare_training, train_step
from transfer.liveness import GradientCoverage

VOCAB_SIZE = {"reference": 50_257, "tiny": 4_097}
NAMES = ("1 Dense", "2 MoE", "3 Large MoE")


def train_phase(config: TrainingConfig, phase: int, steps: int) -> dict:
    """Peak in GB, seconds of each step and final loss of one phase; meant for a process of its own."""
    device = pick_device(config.device)
    compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
    plan = make_plan(config, VOCAB_SIZE[config.preset], device, compute_dtype)
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


def peak_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def planned_gb(memory: PhaseMemory, device: torch.device) -> float:
    """CUDA's allocator knows nothing of the process around it."""
    return (memory.peak - (memory.process if device.type == "cuda" else 0)) / GB


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="reference")
    parser.add_argument("--memory", choices=("auto", "full", "lean"), default="lean")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--phases", default="1,2,3", help="which phases, as in 1,3 (default: all)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="sequences a step (default: the preset's)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps of each phase (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    try:
        given = parser.parse_args(arguments)
        phases = [int(phase) for phase in given.phases.split(",") if phase in ("1", "2", "3")]
        if not phases or given.steps < 1:
            raise UserError(f"--phases {given.phases} --steps {given.steps}: phases are 1, 2 or 3, steps at least 1")
        preset = PRESETS[given.preset]
        config = dataclasses.replace(
            preset, memory=given.memory, precision=given.precision, device=given.device,
            batch_size=given.batch_size or preset.batch_size,
        )  # fmt: skip
        config.validate()
        device = pick_device(config.device)
        compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
        plan = make_plan(config, VOCAB_SIZE[config.preset], device, compute_dtype)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'Phase':<13}{'planned':>10}{'measured':>10}{'ratio':>8}   seconds of each step")
    figures = {"torch": torch.__version__, "device": str(device), "config": dataclasses.asdict(config), "phases": {}}
    for phase in phases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(train_phase, (config, phase, given.steps))
        planned = planned_gb(plan.memory[phase - 1], device)
        figures["phases"][phase] = {"planned_gb": planned, **result}
        print(
            f"{NAMES[phase - 1]:<13}{planned:>7.2f} GB{result['peak_gb']:>7.2f} GB{planned / result['peak_gb']:>8.2f}   "
            + " ".join(f"{s:.1f}" for s in result["seconds"]),
            flush=True,
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
