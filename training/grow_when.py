"""`--grow-when auto`: grow when the grown model gains more from the same compute.

Growing too early wastes compute on a large model that learns what a small one learns for less; too late,
and the small one has stopped learning. Neither shows in the boundary, which is exact at any time. So
the run tries it: a grown copy and a plain copy train for equal FLOPs on the batches to come, at one
learning rate, and the better held-out loss decides. Both copies are thrown away; what they cost
is charged to the run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from models import Transformer
from training.evaluate import heldout_loss
from training.flops import step_flops
from training.optimizer import build_optimizers, write_state
from training.run import Run
from training.step import backward, update
from transfer.optimizer_growth import State, grow_optimizer_state

# A phase lasts between half and four times its steps, with a trial after each 1.5-fold of them.
EARLIEST, EVERY, LATEST = 0.5, 1.5, 4
# What each copy of a trial costs, as a share of the run so far: three trials cost a tenth of it.
TRIAL_SHARE, FEWEST_STEPS = 0.04, 8

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
        return self.loss_grown < self.loss_as_it_is

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
    while at < LATEST * steps:
        result.append(max(1, round(at)))
        at *= EVERY
    return sorted({*result, LATEST * steps})


def try_growth(run: Run, model: Transformer, state: State, rate: float, grow: Grow) -> Trial:
    """Trains two copies, one of them grown, for equal compute; `model` and `state` stay as they are."""
    loss_before = heldout_loss(model, run.heldout)
    grown = grow(model)
    batch_size = run.config.batch_size
    flops = max(TRIAL_SHARE * run.flops_done, FEWEST_STEPS * step_flops(grown.config, batch_size))
    grown_state = grow_optimizer_state(state, model.config, grown.config, run.config.grow_optimizer)
    losses = []
    for contender, moments in ((grown, grown_state), (None, state)):
        # The plain copy is made when the grown one is gone.
        contender = contender or copy.deepcopy(model)
        optimizers = build_optimizers(contender, run.config.weight_decay)
        write_state(contender, optimizers, copy.deepcopy(moments))
        n_steps = round(flops / step_flops(contender.config, batch_size))
        for step in range(n_steps):
            backward(contender, run.data.train_batch(run.steps_done + step).to(run.device), run.config)
            update(optimizers, rate)
        losses.append(heldout_loss(contender, run.heldout))
        run.flops_done += n_steps * step_flops(contender.config, batch_size)
        grown = contender = optimizers = None
    return Trial(flops, loss_before, losses[1], losses[0])
