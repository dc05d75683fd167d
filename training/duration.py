"""How long a run will take, told before it starts: one block of each phase is timed, and its rate carries the rest.

The rate is what the device computes of the network's FLOPs in a forward and a backward pass, with the run's width, batch,
vocabulary and precision; Muon's products are taken to go at the same rate. Held-out losses, checks, stories and files
come on top.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from config import ModelConfig, TrainingConfig
from models import Transformer, next_token_loss
from training.flops import network_flops, step_flops
from training.plan import Plan
from training.step import counts_first

# A device that needs longer for its passes is timed by fewer of them.
LONGEST_TIMING = 2.0


def seconds_per_pass(
    geometry: ModelConfig, batch_size: int, device: torch.device, compute_dtype: torch.dtype | None
) -> float:
    """The fastest of up to three forward and backward passes of a random model, on random full contexts."""
    model = Transformer.empty(geometry).initialise(torch.Generator().manual_seed(0)).to(device)
    model.compute_dtype = compute_dtype
    shape = (batch_size, geometry.context_length + 1)
    tokens_BT = torch.randint(geometry.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds: list[float] = []
    while len(seconds) < 4 and sum(seconds) <= LONGEST_TIMING:
        start = time.perf_counter()
        next_token_loss(model, tokens_BT)[0].backward()
        model.embedding.weight.grad.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)  # the first one compiles and allocates


def seconds_of_phases(plan: Plan, config: TrainingConfig, n_steps: list[int]) -> list[float]:
    """About how long so many steps of each phase will take, in seconds; for a run of one process."""
    machine, rows = plan.machine, -(-config.batch_size // config.accumulate)

    def seconds(steps: int, model: ModelConfig) -> float:
        block = dataclasses.replace(model, n_layers=1)
        timed = seconds_per_pass(block, rows, machine.device, machine.compute_dtype)
        flops = steps * step_flops(model, config.batch_size, counts_first(model, config))
        return flops * timed / network_flops(block, rows)

    return [seconds(steps, model) if steps else 0.0 for steps, model in zip(n_steps, plan.models)]
