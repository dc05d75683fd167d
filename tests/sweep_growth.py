"""Growth after growth through the checks: no exact one may fail, no broken one may pass.

    python -m tests.sweep_growth --seeds 400 --json FILE

Exact growths are of random mixtures of experts of the geometry below, by factors in turn; one in ten has near-ties built
in. Broken ones are all of tests/broken_growth.py, on one seed in eight, half of the models with near-ties.

Exit codes: 0 no false alarm and nothing missed, 1 otherwise, 2 something given cannot work.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring import machine, positive_int, write_json
from command_line import OneLineParser, run_command
from config import ModelConfig
from models import Transformer
from test_growth_checks import lively_moe_model
from tests.broken_growth import FAULTS, add_near_ties
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import CheckResult, detailed_growth_check

EXACT = ModelConfig(vocab_size=500, d_model=128, n_layers=4, n_heads=4, context_length=64)
BROKEN = ModelConfig(vocab_size=211, d_model=32, n_layers=3, n_heads=4, context_length=24)
GROWTHS = ((2, 2), (1.5, 1), (1, 3), (2, 0))
# Enough of them that a few near-ties are less than 1 % of all choices.
EXACT_TOKENS = torch.randint(500, (2, 65), generator=torch.Generator().manual_seed(0))
BROKEN_TOKENS = torch.randint(211, (8, 25), generator=torch.Generator().manual_seed(0))
BUILT_IN_EVERY = 10
BROKEN_EVERY = 8


def checked(old: Transformer, new: Transformer, tokens: Tensor) -> dict[str, CheckResult]:
    with contextlib.redirect_stdout(io.StringIO()):
        return detailed_growth_check(old, new, tokens)


def exact_growth(seed: int) -> dict:
    """One row: a growth that has to pass."""
    old = lively_moe_model(EXACT, seed)
    is_built_in = seed % BUILT_IN_EVERY == 0
    if is_built_in:
        add_near_ties(old, EXACT_TOKENS)
    factor, extra = GROWTHS[seed // BUILT_IN_EVERY % len(GROWTHS) if is_built_in else seed % len(GROWTHS)]
    results = checked(old, scale_bilaterally(old, factor, extra, seed=seed), EXACT_TOKENS)
    function = results["functional"].figures
    return {
        "seed": seed,
        "factor": factor,
        "extra_layers": extra,
        "near_ties_built_in": is_built_in,
        "near_ties_left_out": function["near_ties_left_out"],
        "choices": function["choices"],
        "largest_drift": function["largest_drift"],
        "failed": [f"{result.name}: {result.reason}" for result in results.values() if not result],
    }


def broken_growth(name: str, seed: int) -> dict:
    """One row: a growth that has to fail, in the check that names the fault."""
    fault = FAULTS[name]
    old = lively_moe_model(BROKEN, seed)
    is_built_in = seed // BROKEN_EVERY % 2 == 1
    if is_built_in:
        add_near_ties(old, BROKEN_TOKENS)
    results = checked(old, fault.grown(old, seed), BROKEN_TOKENS)
    return {
        "fault": name,
        "seed": seed,
        "near_ties_built_in": is_built_in,
        "is_caught": not results[fault.check],
        "failed": [result.name for result in results.values() if not result],
    }


def sweep(seeds: int, faults: list[str] = list(FAULTS)) -> dict:
    """All rows, and what they come to."""
    exact = [exact_growth(seed) for seed in tqdm(range(seeds), "exact growths", file=sys.stderr)]
    pairs = [(name, seed) for name in faults for seed in range(0, seeds, BROKEN_EVERY)]
    broken = [broken_growth(name, seed) for name, seed in tqdm(pairs, "broken growths", file=sys.stderr)]
    built_in = [row for row in exact if row["near_ties_built_in"]]
    return {
        "exact": len(exact),
        "with_near_ties_built_in": len(built_in),
        "of_these_turned": sum(row["near_ties_left_out"] > 0 for row in built_in),
        "others_turned": sum(row["near_ties_left_out"] > 0 for row in exact if not row["near_ties_built_in"]),
        "largest_drift": max(row["largest_drift"] for row in exact),
        "false_alarms": [row for row in exact if row["failed"]],
        "broken": len(broken),
        "broken_by_fault": {name: sum(row["fault"] == name for row in broken) for name in faults},
        "missed": [row for row in broken if not row["is_caught"]],
        "rows": {"exact": exact, "broken": broken},
    }


def main(arguments: list[str] | None = None) -> int:
    def work() -> int:
        parser = OneLineParser(usage="python -m tests.sweep_growth [--seeds N] [--json FILE]", description=__doc__)
        parser.add_argument("--seeds", type=positive_int, default=400, help="exact growths, default 400")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there, too")
        given = parser.parse_args(arguments)
        found = sweep(given.seeds)
        capability = torch.backends.cpu.get_cpu_capability()
        found = {"machine": machine(torch.device("cpu")) | {"cpu_capability": capability}} | found
        found["machine"] |= {"ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA")}
        print(
            f"exact: {found['exact']} growths, {found['with_near_ties_built_in']} with near-ties built in "
            f"(turned in {found['of_these_turned']}, in {found['others_turned']} of the others), "
            f"{len(found['false_alarms'])} false alarms, largest drift {found['largest_drift']:.1e}"
        )
        print(f"broken: {found['broken']} growths of {len(FAULTS)} kinds, {len(found['missed'])} missed")
        write_json(given.json, found)
        return 1 if found["false_alarms"] or found["missed"] else 0

    return run_command(work, "give fewer --seeds", "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
