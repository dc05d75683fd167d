"""Does growth pay? Every way to spend the same training compute on the same target, on real stories.

    python -m benchmarks.growth_study --data train.txt --valid-data valid.txt
    python -m benchmarks.growth_study_report

Each budget is a run of its own. Rows of arm, seed, budget, flops, seconds, held-out loss and machine are added to
benchmarks/results/growth_study.json as runs are finished: the study goes on with those that are missing.

FLOPs are counted, not measured: 6 per active parameter and token, attention, and Muon's
orthogonalisation. Seconds are those of one CPU thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.growth_study.arms import ARMS, BATCH, CONTEXT, arm_of
from benchmarks.growth_study.results import RESULTS
from benchmarks.growth_study.runs import END_BATCHES, Results, run_arm
from command_line import OneLineParser, run_command
from config import TrainingConfig
from data import load_data


def run_study(given: list[str] | None) -> None:
    """Raises UserError for flags or stories that cannot be used."""
    parser = OneLineParser(prog="python -m benchmarks.growth_study", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="training stories (.txt, .jsonl, .parquet)")
    parser.add_argument("--valid-data", required=True, help="held-out stories")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="which arms; all of them if not given")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="*", type=float, default=[6, 12, 24], help="training TFLOP")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=Path("data/cache/growth_study"))
    parser.add_argument("--worker", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth run, from I")
    arguments = parser.parse_args(given)
    unknown = [name for name in arguments.arms if name not in ARMS]
    if unknown:
        parser.error(f"unknown arm {unknown[0]!r}; choose among: {', '.join(ARMS)}")
    torch.set_num_threads(1)
    results = Results(arguments.out)
    budgets = [tflop * 1e12 for tflop in arguments.budgets]
    runs = [(name, seed, budget) for seed in arguments.seeds for budget in budgets for name in arguments.arms]
    for name, seed, budget in runs[arguments.worker[0] :: arguments.worker[1]]:
        done = {(row["arm"], row["seed"], row["budget"]) for row in results.rows()}
        if (name, seed, budget) in done:
            continue
        config = TrainingConfig(
            data=arguments.data, valid_data=arguments.valid_data, tokenizer="builtin", seed=seed,
            batch_size=BATCH, context_length=CONTEXT, eval_batches=END_BATCHES,
        )  # fmt: skip
        data = load_data(config, say=lambda _: None)
        run_arm(name, arm_of(name, budget), seed, budget, data, data.heldout_batches(), arguments.cache, results)


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: run_study(arguments), "fewer workers at once")


if __name__ == "__main__":
    sys.exit(main())
