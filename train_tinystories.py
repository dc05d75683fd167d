#!/usr/bin/env python3
"""Grows a language model in three phases: dense, mixture of experts, large mixture of experts.

At each boundary the new model has to compute what the old one computed, or the run stops.
`python train_tinystories.py --help` lists every setting; config.py is the page to edit.

It can be stopped at any time, and goes on with `--resume`. `torchrun --nproc-per-node=4 train_tinystories.py` trains
one model on four ranks, see docs/SCALING.md.

Exit codes: 0 done, 2 something given cannot work, 3 a growth check failed, 4 out of memory, 5 another rank is gone,
130 stopped by Ctrl-C, 143 by SIGTERM, 141 nobody reads its output.
"""

from __future__ import annotations

import sys

from command_line import run_to_its_end
from models import Transformer
from phases import PHASES, PICTURE_NAME, REPORT_NAME, Phase
from report.page import write_report
from report.plot import plot_curves
from run.boundary import cross_boundary
from run.cli import parse_config
from run.console import boundary_summary
from run.decoration import decoration
from run.ending import RunEnding
from run.loop import train_phase
from run.run import Run
from run.start import print_plan, start_run
from run.stop import StopSignals
from training.allocator import hand_out_large_blocks
from training.ranks import team
from transfer.optimizer_growth import grow_optimizer_state
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def train(run: Run) -> None:
    """Every phase from the one in which the run begins; at the boundary before each of the others the model grows."""
    config = run.config
    first, model, moments = run.enter()
    for phase in PHASES[first.number - 1 :]:
        if phase is not first:
            old, model = model, model_of(run, phase, model)
            cross_boundary(run, phase, old, model)
            geometry = old.config
            del old  # before the moments grow, which are as large
            run.saver.wait()  # it may still be writing the old ones
            moments = grow_optimizer_state(moments, geometry, model.config, config.grow_optimizer, frees=True)
        moments = train_phase(run, phase, model, moments)

    finish(run, phase)


def model_of(run: Run, phase: Phase, model: Transformer) -> Transformer:
    """The model with which `phase` begins, made from that of the phase before, which it leaves as it is."""
    config = run.config
    drawing = {"seed": config.seed, "tokens_BT": run.data.train_batch(0)[:2]}
    if phase.made_by == "upcycle":
        return upcycle_to_moe(model, config.n_experts, config.top_k, config.router_std, **drawing)
    return scale_bilaterally(model, config.scale_factor, config.extra_layers, config.noise_std, **drawing)


def finish(run: Run, phase: Phase) -> None:
    """Says what came of it all, and draws it; `phase` is the last."""
    progress, losses = run.progress, run.progress.losses
    progress.tick()
    losses["total_drop"] = losses[f"phase{phase.number}_first"] - losses[f"phase{phase.number}_final"]
    counted = {"seconds": round(progress.seconds, 1), "flops": progress.flops, "skipped_steps": progress.skipped_steps}
    run.history.write("summary", **counted, **losses)
    with decoration("the boundary summary"):
        print(boundary_summary(losses, run.data.bytes_per_token))

    def write_files() -> list[str]:
        with decoration(PICTURE_NAME):
            plot_curves(run.history.path, run.folder / PICTURE_NAME)
        with decoration(REPORT_NAME):
            write_report(run.folder)
        run.forget_state()
        return [name for name in (PICTURE_NAME, REPORT_NAME) if (run.folder / name).exists()]

    *most, last = ["Models", "history", *team().first(write_files)]
    print(f"\nDone in {progress.seconds:.0f} s. {', '.join(most)} and {last} are in {run.folder}/")


def work(arguments: list[str] | None, ending: RunEnding) -> None:
    """Reads the command line, and trains; what `ending` says depends on how far that came."""
    with StopSignals() as stop:
        ending.config, device, plan_only = parse_config(arguments)
        if plan_only:
            print_plan(ending.config, device)
            return
        with start_run(ending.config, device, stop) as run:
            ending.run = run
            train(run)


def main(arguments: list[str] | None = None) -> int:
    hand_out_large_blocks()
    ending = RunEnding()
    return run_to_its_end(lambda: work(arguments, ending), ending)


if __name__ == "__main__":
    sys.exit(main())
