"""How long a run will take, told before it starts, by timing the device.

Of each phase's geometry a model of one layer takes a few of the run's own training steps, and its block passes alone. A
step of the whole model is the former, and the latter once for each further layer:

    step = step of one layer + (n_layers - 1) · block

A held-out loss is a forward pass, a third of what the network computes in a step. Growth and its checks, stories and
files come on top: some percent of a run of hundreds of steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig
from models import Transformer, next_token_loss
from phases import PHASES
from training.flops import network_flops, step_flops
from training.machine import Machine
from training.optimizer import muon_periods
from training.plan import Plan
from training.step import counts_first, prepare_training, train_step

# A timing has three rounds, or as many as take so many seconds; where one call takes longest, it is one of them.
N_ROUNDS, ENOUGH_SECONDS, LONGEST_TIMING = 3, 0.5, 2.0


def seconds_of_phases(plan: Plan, config: TrainingConfig, n_steps: list[int]) -> list[float]:
    """About how long so many steps of each phase will take, in seconds; for a run of one process."""

    def seconds(n: int, model: ModelConfig, is_first: bool) -> float:
        step = seconds_per_step(model, config, plan.machine, plan.is_lean)
        network = network_flops(model, config.batch_size) / step_flops(model, config.batch_size)
        # One loss at the end, and two at a boundary: of the model before and after growth.
        n_losses = (n - 1) // config.eval_every + (1 if is_first else 3)
        return step * (n + config.eval_batches * n_losses * network / 3)

    return [
        seconds(n, model, phase.before is None) if n else 0.0 for n, model, phase in zip(n_steps, plan.models, PHASES)
    ]


def seconds_per_step(model: ModelConfig, config: TrainingConfig, machine: Machine, is_lean: bool) -> float:
    """Of a training step, from one of a model of one layer and from what each further layer adds."""
    device, generator = machine.device, torch.Generator().manual_seed(0)
    one = random_model(dataclasses.replace(model, n_layers=1), device)
    optimizers = prepare_training(one, config, machine.compute_dtype, is_lean)
    tokens_BT = random_tokens(model, config.batch_size, device)
    shape = (-(-config.batch_size // config.accumulate), model.context_length, model.d_model)
    x_BTD = torch.randn(shape, generator=generator).to(device).requires_grad_()
    rope = one.rope(model.context_length)

    def step() -> None:
        loss, _, _ = train_step(one, optimizers, tokens_BT, 0.0, config)
        loss.item()  # waits for the device

    def block() -> None:
        """What a further layer adds: its passes, for each part of a batch, and its matrices' moves."""
        for _ in range(config.accumulate):
            if counts_first(model, config):
                with torch.no_grad():
                    one.blocks[0](x_BTD, rope)
            y_BTD, _ = one.blocks[0](x_BTD, rope)
            y_BTD.backward(torch.ones_like(y_BTD))
        optimizers[0].step()
        optimizers[0].zero_grad()
        x_BTD.grad.sum().item()

    # Matrices move in turns, so that steps differ.
    n_turns = muon_periods(model, config.batch_size * model.context_length)[0]
    seconds = mean_seconds(step, n_turns) + (model.n_layers - 1) * mean_seconds(block, n_turns)
    optimizers[0].leave_parameters()  # with lean memory they would stay for the whole run
    return seconds


def mean_seconds(call: Callable[[], None], n_turns: int) -> float:
    """Of one call, over whole rounds of `n_turns` of them."""
    seconds = [seconds_of(call)]
    if seconds[0] <= LONGEST_TIMING:
        seconds.clear()  # the first one compiles and allocates
    while len(seconds) % n_turns or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < N_ROUNDS * n_turns):
        seconds.append(seconds_of(call))
    return sum(seconds) / len(seconds)


def seconds_per_pass(
    geometry: ModelConfig, batch_size: int, device: torch.device, compute_dtype: torch.dtype | None
) -> float:
    """The fastest of up to three forward and backward passes of a random model, on random full contexts."""
    model, tokens_BT = random_model(geometry, device), random_tokens(geometry, batch_size, device)
    model.compute_dtype = compute_dtype

    def passes() -> None:
        next_token_loss(model, tokens_BT)[0].backward()
        model.embedding.weight.grad.sum().item()  # waits for the device

    seconds: list[float] = []
    while len(seconds) < 4 and sum(seconds) <= LONGEST_TIMING:
        seconds.append(seconds_of(passes))
    return min(seconds[1:] or seconds)  # the first one compiles and allocates


def seconds_of(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def random_model(geometry: ModelConfig, device: torch.device) -> Transformer:
    return Transformer.empty(geometry).initialise(torch.Generator().manual_seed(0)).to(device)


def random_tokens(geometry: ModelConfig, batch_size: int, device: torch.device) -> Tensor:
    """(batch, time + 1), of full contexts."""
    shape = (batch_size, geometry.context_length + 1)
    return torch.randint(geometry.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
