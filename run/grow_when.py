"""`--grow-when auto`: grow when the grown model gains more from the same compute.

Growing too early wastes compute on a large model that learns what a small one learns for less; too late,
and the small one has stopped learning. Neither shows in the boundary, which is exact at any time. So
the run tries it: a grown copy and a plain copy train for equal FLOPs on the batches to come, at one
learning rate, and the better held-out loss decides. Both copies are thrown away; what they cost, a tenth
of the run so far at each trial, is charged to the run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from config import LONGEST_PHASE
from models import Transformer
from models.shards import copy_of
from phases import Phase
from run.run import Run
from training.flops import step_flops
from training.heldout import heldout_loss
from training.optimizer import read_moments, write_moments
from training.ranks import team
from training.step import counts_first, prepare_training, train_step
from transfer.optimizer_growth import Moments, grow_optimizer_state

# A phase lasts between half and four times its steps, with a trial after each 1.5-fold of them.
EARLIEST, EVERY = 0.5, 1.5
# A trial costs this share of the run so far, both copies together. One that would be shorter than so many
# steps of the grown model would tell nothing, and is not made.
TRIAL_SHARE, FEWEST_STEPS = 0.1, 8

# Makes the model of a phase from that of the phase before.
Grow = Callable[[Phase, Transformer], Transformer]


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


class TrialLeft(Exception):
    """A signal came between two steps of a trial."""


class Trials:
    """The trials of growth in one phase, and how many steps it may have: `n_steps`.

    `was_left`: a signal ended the last one, and it is as if none had been made: a run that is saved then makes it when
    it goes on.
    """

    def __init__(self, run: Run, phase: Phase, grow: Grow):
        self.run, self.phase, self.grow = run, phase, grow
        n_steps = run.config.steps(phase.number)
        self.due_after = trial_steps(n_steps) if phase.after and run.config.grow_when == "auto" else []
        self.n_steps = self.due_after[-1] if self.due_after else n_steps
        self.was_left = False

    def say_grow(self, step: int, rate: float, model: Transformer, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Whether a trial was due after `step`, and growth pays; prints and records it, and why."""
        if step + 1 not in self.due_after or step + 1 >= self.n_steps:
            return False
        run, moments = self.run, read_moments(model, optimizers)
        flops = run.progress.flops
        try:
            with run.aside():
                trial = try_growth(run, model, moments, rate, lambda model: self.grow(self.phase.after, model))
        except TrialLeft:
            self.was_left, run.progress.flops = True, flops
            return False
        if trial is None:
            return False
        tqdm.write(f"  step {step:>4} | grow? {trial.reason}")
        figures = dataclasses.asdict(trial)
        run.history.write("trial", phase=self.phase.number, step=step, pays=trial.pays, **figures)
        return trial.pays


def trial_steps(steps: int) -> list[int]:
    """After which steps of a phase with `steps` steps growth is tried; the last is the end in any case."""
    at, result = EARLIEST * steps, []
    while at < LONGEST_PHASE * steps:
        result.append(max(1, round(at)))
        at *= EVERY
    return sorted({*result, LONGEST_PHASE * steps})


def try_growth(
    run: Run, model: Transformer, moments: Moments, rate: float, grow: Callable[[Transformer], Transformer]
) -> Trial | None:
    """Trains two copies, one of them grown, for equal compute; `model` and `moments` stay as they are.

    None where the run is too young to afford a trial, and where growth changes nothing.

    Raises:
        TrialLeft: a signal came.
    """
    config, progress = run.config, run.progress
    grown_geometry = run.plan.models[run.plan.models.index(model.config) + 1]
    grown_flops = step_flops(grown_geometry, config.batch_size, counts_first(grown_geometry, config))
    n_steps = int(TRIAL_SHARE / 2 * progress.flops / grown_flops)
    if n_steps < FEWEST_STEPS or grown_geometry == model.config:
        return None
    flops = n_steps * grown_flops

    def train(contender: Transformer, moments: Moments) -> float:
        optimizers = prepare_training(contender, config, run.compute_dtype, run.plan.is_lean)
        write_moments(contender, optimizers, moments)
        step_cost = step_flops(contender.config, config.batch_size, counts_first(contender.config, config))
        for step in range(round(flops / step_cost)):
            train_step(contender, optimizers, run.batch(progress.steps + step), rate, config)
            progress.flops += step_cost
            run.stop.agree()
            if run.stop.is_asked:
                raise TrialLeft
        return heldout_loss(contender, run.heldout)

    def train_grown() -> float:
        # In a function of its own, so that the large copy is gone when the plain one is made.
        grown = grow(model)
        return train(grown, grow_optimizer_state(moments, model.config, grown.config, config.grow_optimizer))

    loss_grown = train_grown()
    loss_as_it_is = train(copy_of(model), copy.deepcopy(moments))
    return team().agreed(Trial(flops, heldout_loss(model, run.heldout), loss_as_it_is, loss_grown))
