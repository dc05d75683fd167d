"""A whole training step at reference geometry: seconds, parts, and the share of this machine's own matrix rate.

    python -m benchmarks.step_time --json step_time.json
    python -m benchmarks.step_time --phases 3 --memory lean

A step is forward, loss, backward, clipping and optimizer, on batches of 8 × 256 random tokens. Shares of the limit count
the network's FLOPs alone, forward and backward (6 per active parameter and token, and causal attention); "with
Muon" counts its matrix products, too, as training/flops.py does, and its share is of both together.
"""

from __future__ import annotations

import statistics
import sys

import torch

from benchmarks.measuring import (
    DTYPES,
    LIMIT,
    ROUNDS,
    VOCAB_SIZE,
    Limit,
    Timing,
    command_parser,
    exit_code,
    find_limit,
    int_list,
    limit_shapes,
    machine,
    seconds_of,
    table,
    time_interleaved,
    write_json,
)
from benchmarks.trainees import Trainee, parts_of_step
from config import PRESETS, TrainingConfig
from training.flops import network_flops, optimizer_flops

DEVICE = torch.device("cpu")
DENSE, MOE, LARGE_MOE = "dense", "MoE", "large MoE"


def contenders(
    settings: TrainingConfig, vocab_size: int, phases: list[int], dtype: torch.dtype, is_lean: bool
) -> dict[str, Trainee]:
    """The steps to be timed. Lean memory is for the MoE alone."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (settings.batch_size, settings.context_length + 1), generator=generator)
    chosen = {}
    for phase, (name, geometry) in enumerate(zip((DENSE, MOE, LARGE_MOE), settings.phase_geometries(vocab_size)), 1):
        if phase in phases:
            chosen[name] = Trainee(geometry, tokens, settings, dtype, is_lean and phase > 1)
    return chosen


def measure(
    chosen: dict[str, Trainee], batch_size: int, dtype: torch.dtype, limit: Limit
) -> tuple[list[dict], list[dict], Timing]:
    """One row of figures and one of parts, seconds each, per contender; and the limit's timing."""
    first = {name: seconds_of(trainee, 1, DEVICE) for name, trainee in chosen.items()}
    timings = time_interleaved(chosen | {LIMIT: limit.call}, DEVICE)
    limit_rate = limit.rate(timings[LIMIT])
    steps, parts = [], []
    for name, trainee in chosen.items():
        seconds = timings[name].seconds
        config = trainee.model.config
        network, optimizer = network_flops(config, batch_size), optimizer_flops(config, batch_size, dtype)
        steps.append(
            {
                "step": name,
                "first s": first[name],
                "seconds": seconds,
                "spread": timings[name].spread,
                "tokens/s": batch_size * config.context_length / seconds,
                "GFLOP/s": network / seconds / 1e9,
                "of limit": network / seconds / limit_rate,
                "with Muon": (network + optimizer) / seconds / limit_rate,
                "Muon's share": optimizer / (network + optimizer),
            }
        )
        samples = [parts_of_step(trainee, DEVICE) for _ in range(ROUNDS)]
        parts.append({"step": name} | {part: statistics.median(s[part] for s in samples) for part in samples[0]})
    return steps, parts, timings[LIMIT]


def ratios(steps: list[dict]) -> dict[str, float]:
    """FLOP rates of MoE steps against the dense one."""
    row = {row["step"]: row for row in steps}
    found = {}
    for moe in (MOE, LARGE_MOE):
        if moe in row and DENSE in row:
            for label, key in (("network", "of limit"), ("with Muon", "with Muon")):
                found[f"FLOP rate of {moe} over dense, {label}"] = row[moe][key] / row[DENSE][key]
    return found


def run(given: list[str] | None) -> None:
    parser = command_parser("step_time", __doc__.splitlines()[0])
    parser.add_argument("--phases", type=int_list, default=[1, 2], help="default 1,2")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--memory", choices=("full", "lean"), default="full", help="how the MoE trains")
    parser.add_argument("--preset", choices=list(PRESETS), default="reference", help="whose geometry and batches")
    arguments = parser.parse_args(given)
    if not set(arguments.phases) <= {1, 2, 3}:
        parser.error(f"--phases {','.join(map(str, arguments.phases))}: there are phases 1, 2 and 3")
    settings, dtype = PRESETS[arguments.preset], DTYPES[arguments.dtype]
    limit = find_limit(dtype, DEVICE, limit_shapes(settings.batch_size * settings.context_length, settings.d_model))
    chosen = contenders(settings, VOCAB_SIZE[arguments.preset], arguments.phases, dtype, arguments.memory == "lean")
    steps, parts, timing = measure(chosen, settings.batch_size, dtype, limit)
    limit_rate = limit.rate(timing)
    found = ratios(steps)
    print(table(steps))
    print("\nSeconds\n" + table(parts) + "\n")
    for name, value in found.items():
        print(f"{name}: {value:.3f}")
    print(
        f"Limit: this machine's best {arguments.dtype} matrix product, {limit_rate / 1e9:,.0f} GFLOP/s in the same "
        f"rounds (spread {timing.spread:.2f}), at its fastest {limit.best / 1e9:,.0f}"
    )
    figures = {"machine": machine(DEVICE), "fastest_product": limit.best}
    figures |= {"limit": limit_rate, "spread of limit": timing.spread}
    write_json(arguments.json, figures | {"steps": steps, "parts": parts, "ratios": found})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
