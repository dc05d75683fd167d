"""`--grow-when auto`: grow when the grown model gains more from the same compute.

Growing too early wastes compute on a large model that learns what a small one learns for less; too late,
and the small one has stopped learning. Neither shows in the boundary, which is exact at any time. So
the run tries it: a grown copy and a plain copy train for equal FLOPs on the batches to come, at one
learning rate, and the better held-out loss decides. Both copies are thrown away; what they cost, a tenth
of the run so far at each trial, is charged to the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

from config import LONGEST_PHASE
from models import Transformer
from models.shards import copy_of
from run.run import Run
from training import ranks
from training.evaluate import heldout_loss
from training.flops import step_flops
from training.optimizer import write_state
from training.step import prepare_training, train_step
from transfer.optimizer_growth import State, grow_optimizer_state

# A phase lasts between half and four times its steps, with a trial after each 1.5-fold of them.
EARLIEST, EVERY = 0.5, 1.5
# A trial costs this share of the run so far, both copies together. One that would be shorter than so many
# steps of the grown model would tell nothing, and is not made.
TRIAL_SHARE, FEWEST_STEPS = 0.1, 8

Grow = Callable[[Transformer], Transformer]


@dataclass(frozen=True)
class Trial:
    """Held-out losses in nats a token: before, and after `flops` of training with and without growth."""

    flops: float
    loss_before: float
    loss_as_it_is: float
    loss_grown: float

    @property
    def pays(self) -> bool:
        plain = self.loss_as_it_is if math.isfinite(self.loss_as_it_is) else math.inf
        return self.loss_grown < plain

    @property
    def reason(self) -> str:
        gains = [self.loss_before - loss for loss in (self.loss_as_it_is, self.loss_grown)]
        verdict = "growing now" if self.pays else "not yet"
        return (
            f"{self.flops / 1e12:.3g} TFLOP more gain {gains[0]:+.4f} nats as it is, {gains[1]:+.4f} grown: {verdict}"
        )


def trial_steps(steps: int) -> list[int]:
    """After which steps of a phase with `steps` steps growth is tried; the last is the end in any case."""
    at, result = EARLIEST * steps, []
    while at < LONGEST_PHASE * steps:
        result.append(max(1, round(at)))
        at *= EVERY
    return sorted({*result, LONGEST_PHASE * steps})


def try_growth(run: Run, model: Transformer, state: State, rate: float, grow: Grow) -> Trial | None:
    """Trains two copies, one of them grown, for equal compute; `model` and `state` stay as they are.

    None where the run is too young to afford a trial, or where growth changes nothing.
    """
    config = run.config
    grown_geometry = run.plan.models[run.plan.models.index(model.config) + 1]
    grown_flops = step_flops(grown_geometry, config.batch_size)
    n_steps = int(TRIAL_SHARE / 2 * run.flops_done / grown_flops)
    if n_steps < FEWEST_STEPS or grown_geometry == model.config:
        return None
    flops = n_steps * grown_flops

    def train(contender: Transformer, moments: State) -> float:
        optimizers = prepare_training(contender, config, run.compute_dtype, run.plan.is_lean)
        write_state(contender, optimizers, moments)
        step_cost = step_flops(contender.config, config.batch_size)
        for step in range(round(flops / step_cost)):
            train_step(contender, optimizers, run.batch(run.steps_done + step), rate, config)
            run.flops_done += step_cost
        return heldout_loss(contender, run.heldout)

    def train_grown() -> float:
        # In a function of its own, so that the large copy is gone when the plain one is made.
        grown = grow(model)
        return train(grown, grow_optimizer_state(state, model.config, grown.config, config.grow_optimizer))

    loss_grown = train_grown()
    loss_as_it_is = train(copy_of(model), copy.deepcopy(state))
    return ranks.as_first(Trial(flops, heldout_loss(model, run.heldout), loss_as_it_is, loss_grown))
