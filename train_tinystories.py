#!/usr/bin/env python3
"""Grows a language model in three phases: dense, mixture of experts, large mixture of experts.

At each boundary the new model has to compute what the old one computed, or the run stops.
`python train_tinystories.py --help` lists every setting; config.py is the page to edit.

Exit codes: 0 done, 2 something given cannot work, 3 a growth check failed, 4 out of memory,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import time

import torch

from config import UserError
from models import build_dense_model
from training.allocator import hand_out_large_blocks
from training.boundary import GrowthCheckFailed, cross_boundary
from training.cli import parse_config
from training.loop import train_phase
from training.plan import OUT_OF_MEMORY_ADVICE, is_out_of_memory, make_plan
from training.plot import plot_curves
from training.report import boundary_summary
from training.run import PICTURE_NAME, start_run
from transfer.optimizer_growth import grow_optimizer_state
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def train(config, device) -> None:
    """The three phases and the two boundaries between them."""
    start = time.perf_counter()
    run = start_run(config, device)

    def upcycle(model):
        return upcycle_to_moe(model, config.n_experts, config.top_k, config.router_std, seed=config.seed)

    def grow(model):
        return scale_bilaterally(model, config.scale_factor, config.extra_layers, config.noise_std, seed=config.seed)

    dense = build_dense_model(run.plan.models[0], seed=config.seed).to(device)
    state = train_phase(run, 1, dense, grow=upcycle)

    moe = upcycle(dense)
    cross_boundary(run, 2, dense, moe)
    state = grow_optimizer_state(state, dense.config, moe.config, config.grow_optimizer)
    del dense
    state = train_phase(run, 2, moe, state, grow=grow)

    large_moe = grow(moe)
    cross_boundary(run, 3, moe, large_moe)
    state = grow_optimizer_state(state, moe.config, large_moe.config, config.grow_optimizer)
    del moe
    train_phase(run, 3, large_moe, state)

    run.losses["total_drop"] = run.losses["phase3_first"] - run.losses["phase3_final"]
    seconds = time.perf_counter() - start
    run.history.write("summary", seconds=round(seconds, 1), flops=run.flops_done, **run.losses)
    run.history.close()
    print(boundary_summary(run.losses, run.data.bytes_per_token))
    plot_curves(run.history.path, run.folder / PICTURE_NAME)
    print(f"\nDone in {seconds:.0f} s. Models, history and {PICTURE_NAME} are in {run.folder}/")


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for a tick; it must not end the run.
        stream.reconfigure(errors="replace")
    hand_out_large_blocks()
    try:
        config, device, plan_only = parse_config(arguments)
        if plan_only:
            is_gpt2 = config.tokenizer == "gpt2" or (config.tokenizer == "auto" and config.data != "builtin")
            vocab_size = 50_257 if is_gpt2 else 4_097
            compute_dtype = torch.bfloat16 if config.precision == "bf16" else None
            print(make_plan(config, vocab_size, device, compute_dtype).table())
            return 0
        train(config, device)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except GrowthCheckFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\nstopped; models of finished phases are kept. A run cannot be resumed yet: start again with --overwrite "
              "or another --checkpoint-dir", file=sys.stderr)  # fmt: skip
        return 130
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY_ADVICE}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())
