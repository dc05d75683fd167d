"""Builds, upcycles, grows and checks the reference geometry, without training: counts, seconds, memory.

    python -m benchmarks.reference_growth --json reference_growth.json

The models are random with weights large enough to make every layer matter, the tokens are random
too: exactness does not depend on what was learned. Needs about 12 GB of memory.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager

import torch

from benchmarks.measuring import VOCAB_SIZE, command_parser, exit_code, machine, peak_bytes, write_json
from config import TrainingConfig
from models import count_parameters, next_token_loss
from test_growth_checks import lively_dense_model, lively_moe_model
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import check_functional_identity, detailed_growth_check


def run(given: list[str] | None) -> None:
    arguments = command_parser("reference_growth", __doc__.splitlines()[0]).parse_args(given)
    cpu = torch.device("cpu")
    figures: dict = {"machine": machine(cpu)}

    @contextmanager
    def stage(name: str):
        start = time.perf_counter()
        yield
        figures[name] = {"seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak_bytes(cpu) / 1e9, 2)}

    config = TrainingConfig()
    dense_geometry = config.phase_geometries(VOCAB_SIZE["reference"])[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(dense_geometry.vocab_size, (2, config.context_length + 1), generator=generator)

    with stage("build and upcycle"):
        dense = lively_dense_model(dense_geometry)
        moe = upcycle_to_moe(dense, config.n_experts, config.top_k, config.router_std)
    with stage("check dense → MoE"):
        checks = [check_functional_identity(dense, moe)]
    figures["parameters"] = [count_parameters(dense).total, count_parameters(moe).total]
    del dense, moe
    with stage("build a MoE whose experts differ"):
        moe = lively_moe_model(dense_geometry)
    with stage("grow"):
        large = scale_bilaterally(moe, config.scale_factor, config.extra_layers, config.noise_std)
    with stage("four checks"):
        checks += detailed_growth_check(moe, large, tolerance=config.check_tolerance).values()
    with stage("held-out loss of both"), torch.no_grad():
        before, after = (next_token_loss(model, tokens)[0].item() for model in (moe, large))
    count = count_parameters(large)
    figures["parameters"] += [count.total, count.active]
    figures["jump"] = after - before
    figures["all checks passed"] = all(checks)

    print()
    for name, value in figures.items():
        print(f"{name:<36}{value}")
    write_json(arguments.json, figures)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
