"""What the optimizer costs beside the network, phase by phase at reference geometry: counted, nothing is trained.

    python -m benchmarks.optimizer_cost --json optimizer_cost.json

A step is one of 8 × 256 tokens. The network's FLOPs are those of training/flops.py; the optimizer's are the products
that it multiplies, counted by torch on tensors without memory, on average over the turns that matrices take.
"""

from __future__ import annotations

import math
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import DTYPES, VOCAB_SIZE, command_parser, exit_code, machine, table, write_json
from config import PRESETS, ModelConfig
from models import Transformer
from training.flops import network_flops
from training.optimizer import build_optimizers


def counted_optimizer_flops(model: ModelConfig, batch_size: int, dtype: torch.dtype) -> float:
    """FLOPs of the matrix products of one step, the mean over all turns. AdamW has none."""
    with torch.device("meta"):
        network = Transformer(model)
        network.compute_dtype = dtype
        muon, _ = build_optimizers(network, weight_decay=0.1, tokens=batch_size * model.context_length)
    turns = math.lcm(*(group["period"] for group in muon.param_groups))
    for group in muon.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    with FlopCounterMode(display=False) as counter:
        for _ in range(turns):
            muon.step()
    return counter.get_total_flops() / turns


def cost_of_phase(phase: int, model: ModelConfig, batch_size: int, dtype: torch.dtype) -> dict:
    network, optimizer = network_flops(model, batch_size), counted_optimizer_flops(model, batch_size, dtype)
    return {
        "phase": phase,
        "network_flops": network,
        "optimizer_flops": optimizer,
        "optimizer / network": optimizer / network,
        "optimizer's share": optimizer / (network + optimizer),
    }


def run(given: list[str] | None) -> None:
    parser = command_parser("optimizer_cost", __doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of Muon's products (default: fp32)")
    arguments = parser.parse_args(given)
    settings, dtype = PRESETS["reference"], DTYPES[arguments.dtype]
    models = settings.phase_geometries(VOCAB_SIZE["reference"])
    rows = [cost_of_phase(phase, model, settings.batch_size, dtype) for phase, model in enumerate(models, start=1)]
    print(table([row | {key: f"{row[key]:.3e}" for key in ("network_flops", "optimizer_flops")} for row in rows]))
    tokens = settings.batch_size * settings.context_length
    figures = {"machine": machine(torch.device("cpu")), "tokens a step": tokens, "dtype": arguments.dtype}
    write_json(arguments.json, figures | {"phases": rows})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
