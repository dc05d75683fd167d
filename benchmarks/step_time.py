"""A whole training step at reference geometry: share of this machine's own matrix rate, and against GPT-NeoX.

    python -m benchmarks.step_time --json step_time.json
    python -m benchmarks.step_time --phases 3 --memory lean

A step is forward, loss, backward, clipping and optimizer, on batches of 8 × 256 random tokens. The peer is
`transformers`' GPT-NeoX with the same geometry (sequential residual, rotary over whole heads, tied embedding),
the same weights, first loss and gradients, fp32 weights under autocast, sdpa attention. It is timed with our optimizers
(Muon and AdamW) and with torch's fused AdamW alone, and so is ours: ratios compare equal optimizers.

Shares of the limit count the network's FLOPs alone, forward and backward (6 per active parameter and token, and
causal attention); "with Muon" counts its matrix products, too, as training/flops.py does.
"""

from __future__ import annotations

import statistics
import sys

import torch

from benchmarks import trainees
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
from benchmarks.trainees import Trainee, network_flops
from config import PRESETS, TrainingConfig
from training.device import check_model
from training.flops import step_flops

DEVICE = torch.device("cpu")
DENSE, DENSE_ADAMW, MOE, LARGE_MOE = "dense", "dense, AdamW", "MoE", "large MoE"
NEOX, NEOX_ADAMW = "GPT-NeoX", "GPT-NeoX, AdamW"


def contenders(
    settings: TrainingConfig, vocab_size: int, phases: list[int], dtype: torch.dtype, is_lean: bool
) -> dict[str, Trainee]:
    """The steps to be timed. The two of one model share its weights; lean memory is for the MoE alone.

    Raises:
        UserError: `transformers` is not installed, and phase 1 is among the phases.
        AssertionError: the peer computes something else.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (settings.batch_size, settings.context_length + 1), generator=generator)
    geometries = settings.phase_geometries(vocab_size)
    chosen = {}
    if 1 in phases:
        # In a new model other attention would go unnoticed; this one's weights are larger.
        model = check_model(geometries[0])
        peer = trainees.neox(model)
        trainees.require_same_gradients(model, peer, tokens, dtype)
        chosen[DENSE] = trainees.ours(model, tokens, settings, dtype)
        chosen[DENSE_ADAMW] = trainees.ours(model, tokens, settings, dtype, plain_adamw=True)
        chosen[NEOX] = trainees.gpt_neox(peer, model, tokens, settings, dtype)
        chosen[NEOX_ADAMW] = trainees.gpt_neox(peer, model, tokens, settings, dtype, plain_adamw=True)
    for phase, name in ((2, MOE), (3, LARGE_MOE)):
        if phase in phases:
            model = trainees.our_model(geometries[phase - 1])
            chosen[name] = trainees.ours(model, tokens, settings, dtype, is_lean)
    return chosen


def measure(chosen: dict[str, Trainee], batch_size: int, limit: Limit) -> tuple[list[dict], list[dict], Timing]:
    """One row of figures and one of parts, seconds each, per contender; and the limit's timing."""
    first = {name: seconds_of(trainee, 1, DEVICE) for name, trainee in chosen.items()}
    timings = time_interleaved(chosen | {LIMIT: limit.call}, DEVICE)
    limit_rate = limit.rate(timings[LIMIT])
    steps, parts = [], []
    for name, trainee in chosen.items():
        seconds = timings[name].seconds
        rate = network_flops(trainee.config, batch_size) / seconds
        steps.append(
            {
                "step": name,
                "first s": first[name],
                "seconds": seconds,
                "spread": timings[name].spread,
                "tokens/s": batch_size * trainee.config.context_length / seconds,
                "GFLOP/s": rate / 1e9,
                "of limit": rate / limit_rate,
            }
        )
        if not name.endswith("AdamW"):
            steps[-1]["with Muon"] = step_flops(trainee.config, batch_size) / seconds / limit_rate
        else:
            steps[-1]["with Muon"] = rate / limit_rate
        samples = [trainees.parts_of_step(trainee, DEVICE) for _ in range(ROUNDS)]
        parts.append({"step": name} | {part: statistics.median(s[part] for s in samples) for part in samples[0]})
    return steps, parts, timings[LIMIT]


def ratios(steps: list[dict]) -> dict[str, float]:
    """Tokens per second against the peer with the same optimizer, and FLOP rates of MoE steps against the dense one."""
    row = {row["step"]: row for row in steps}
    found = {}
    for ours, theirs, optimizer in ((DENSE, NEOX, "Muon and AdamW"), (DENSE_ADAMW, NEOX_ADAMW, "AdamW")):
        if ours in row:
            found[f"tokens/s over GPT-NeoX, both with {optimizer}"] = row[ours]["tokens/s"] / row[theirs]["tokens/s"]
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
    steps, parts, timing = measure(chosen, settings.batch_size, limit)
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
