#!/usr/bin/env python3
"""Grows a language model in three phases: dense, mixture of experts, large mixture of experts.

At each boundary the new model has to compute what the old one computed, or the run stops.
`python train_tinystories.py --help` lists every setting; config.py is the page to edit.

It can be stopped at any time, and goes on with `--resume`. `torchrun --nproc-per-node=4 train_tinystories.py` trains
one model on four ranks, see docs/SCALING.md.

Exit codes: 0 done, 2 something given cannot work, 3 a growth check failed, 4 out of memory, 5 another rank is gone,
130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import sys

import torch

from command_line import is_out_of_memory, one_line
from config import TrainingConfig, UserError
from data.tokenizer import find_tokenizer, load_tokenizer
from phases import PICTURE_NAME, REPORT_NAME
from report.page import write_report
from report.plot import plot_curves
from run.boundary import GrowthCheckFailed, cross_boundary
from run.cli import RunComplete, parse_config
from run.console import boundary_summary
from run.loop import train_phase
from run.start import start_run
from run.start_model import dense_of, start_geometry
from run.stop import Stopped, StopSignals
from run.ways_out import how_to_go_on, out_of_memory_advice
from training import ranks
from training.allocator import hand_out_large_blocks
from training.plan import Machine, make_plan
from transfer.optimizer_growth import grow_optimizer_state
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def train(run) -> None:
    """The three phases and the two boundaries between them, from the phase on in which the run begins."""
    config = run.config
    phase, model, moments = run.enter()

    drawing = {"seed": config.seed, "tokens_BT": run.data.train_batch(0)[:2]}

    def upcycle(model):
        return upcycle_to_moe(model, config.n_experts, config.top_k, config.router_std, **drawing)

    def grow(model):
        return scale_bilaterally(model, config.scale_factor, config.extra_layers, config.noise_std, **drawing)

    if phase <= 1:
        moments = train_phase(run, 1, model, moments, grow=upcycle)
        dense, model = model, upcycle(model)
        cross_boundary(run, 2, dense, model)
        moments = grow_optimizer_state(moments, dense.config, model.config, config.grow_optimizer)
        del dense
    if phase <= 2:
        moments = train_phase(run, 2, model, moments, grow=grow)
        moe, model = model, grow(model)
        cross_boundary(run, 3, moe, model)
        moments = grow_optimizer_state(moments, moe.config, model.config, config.grow_optimizer)
        del moe
    train_phase(run, 3, model, moments)

    run.losses["total_drop"] = run.losses["phase3_first"] - run.losses["phase3_final"]
    run.history.write(
        "summary", seconds=round(run.seconds, 1), flops=run.flops_done, skipped_steps=run.skipped_steps, **run.losses
    )
    print(boundary_summary(run.losses, run.data.bytes_per_token))
    ranks.first_alone(lambda: finish_files(run))
    print(f"\nDone in {run.seconds:.0f} s. Models, history, {PICTURE_NAME} and {REPORT_NAME} are in {run.folder}/")


def finish_files(run) -> None:
    plot_curves(run.history.path, run.folder / PICTURE_NAME)
    write_report(run.folder)
    run.forget_state()


def vocabulary_size(config: TrainingConfig) -> int:
    """Of the tokenizer that the settings name, or that "auto" most probably takes; gpt2 is not asked for."""
    if config.tokenizer.endswith(".json"):
        return load_tokenizer(find_tokenizer(config.tokenizer, config.checkpoint_dir)).n_vocab
    is_gpt2 = config.tokenizer == "gpt2" or (config.tokenizer == "auto" and config.data != "builtin")
    return 50_257 if is_gpt2 else 4_097


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for a tick; it must not end the run.
        stream.reconfigure(errors="replace")
    hand_out_large_blocks()
    if not ranks.is_first_process():
        ranks.be_quiet()
    config = run = None
    try:
        with StopSignals() as stop:
            config, device, plan_only = parse_config(arguments)
            if plan_only:
                start = start_geometry(config)
                compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
                dense = dense_of(start) if start else config.dense_geometry(vocabulary_size(config))
                print(make_plan(config, dense, Machine.now(device, compute_dtype, ranks.planned_count())).table())
                return 0
            with ranks.together(config, device) as device, start_run(config, device, stop) as run:
                train(run)
            return 0
    except RunComplete as note:
        print(note)
        return 0
    except UserError as error:
        ranks.say_once(f"error: {one_line(error)}", error)
        return 2
    except GrowthCheckFailed as error:
        ranks.say_once(f"error: {one_line(error)}", error)
        return 3
    except Stopped as stopped:
        ranks.say_once(f"{stopped}; {how_to_go_on(config)}", stopped)
        return stopped.exit_code
    except OSError as error:  # of a path that cannot be one, or of a terminal or a log that takes no more
        print(f"error: {one_line(error)}; {how_to_go_on(config)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if ranks.is_lost(error):
            print(
                f"error: {ranks.lost_line(error, run.steps_done if run else 0)}; {how_to_go_on(config)}",
                file=sys.stderr,
            )
            return ranks.RANK_LOST
        if not is_out_of_memory(error):
            raise
        print(f"error: {out_of_memory_advice(run)}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())
