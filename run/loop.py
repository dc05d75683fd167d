"""One phase of training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from config import TrainingConfig
from models import Transformer, save_model
from phases import Phase
from run.console import phase_header, progress_bar
from run.decoration import decoration
from run.liveness_watch import LivenessWatch
from run.records import StepRows, record_heldout_loss, tell_story
from run.run import Run
from run.run_state import RunState
from run.snapshots import save_after_phase, save_if_due
from training.optimizer import read_moments, write_moments
from training.ranks import team
from training.schedule import learning_rate
from training.step import prepare_training, train_step
from transfer.optimizer_growth import Moments


def train_phase(run: Run, phase: Phase, model: Transformer, moments: Moments) -> Moments:
    """Trains the model in place through its phase, records it, and saves it.

    A phase in which the run was stopped goes on there; one that was over then is not trained again.

    Args:
        moments: of the optimizers, to go on with, grown from those of the phase before; those missing start afresh.
    Returns:
        The moments at the end.
    Raises:
        UserError: the loss is no longer a number, or the disk is full.
        Stopped: a signal asked for it; the run's state is saved.
    """
    model.compute_dtype = run.compute_dtype
    saved = run.take_saved()
    if saved and saved.is_complete:
        return moments
    with run.stop.held():
        moments = train_steps(run, phase, model, moments, saved)
    run.stop.agree()
    run.stop.raise_if_asked(f"after phase {phase.number}, and saved")
    return moments


def train_steps(run: Run, phase: Phase, model: Transformer, moments: Moments, saved: RunState | None) -> Moments:
    """As `train_phase`, from where `saved` says."""
    config = run.config
    n_steps = config.steps(phase.number)
    print(phase_header(phase, run.plan, config))
    run.saver.wait()  # what it may still be writing is the phase before, whose memory this one needs
    liveness = LivenessWatch(run, phase, model, saved)
    optimizers = prepare_training(model, config, run.compute_dtype, run.plan.is_lean)
    write_moments(model, optimizers, moments)
    rate_at = phase_rates(config, phase)
    first, rows = (saved.step, StepRows(run, phase, saved.rows)) if saved else (0, StepRows(run, phase))
    run.progress.begin_phase(saved.progress.phase_seconds if saved else 0.0)

    with progress_bar(phase, first, n_steps) as bar:
        for step in range(first, n_steps):
            rate, tokens_BT = rate_at(step), run.batch(run.progress.steps)
            liveness.before_step(tokens_BT)
            loss, layers, grad_norm = train_step(model, optimizers, tokens_BT, rate, config)
            run.count_step(model.config)
            bar.update()

            rows.add(step, rate, loss, layers, grad_norm)
            if step % config.log_every == 0 or step == n_steps - 1:
                rows.write()
            if (step + 1) % config.eval_every == 0 and step + 1 < n_steps:
                record_heldout_loss(run, phase, step, model)
            liveness.after_step(step + 1)
            save_if_due(run, phase, step + 1, model, optimizers, rows, liveness)

    rows.write()
    return end_phase(run, phase, model, optimizers, liveness)


def end_phase(
    run: Run, phase: Phase, model: Transformer, optimizers: list[torch.optim.Optimizer], liveness: LivenessWatch
) -> Moments:
    """Measures, saves and shows the model with which the phase ends; returns the moments."""
    n_steps = run.config.steps(phase.number)
    run.progress.losses[f"phase{phase.number}_final"] = record_heldout_loss(run, phase, n_steps - 1, model)
    checksum = team().agreed(save_model(model, phase.path_in(run.folder)))
    liveness.after_last_step(n_steps)
    with decoration(f"the story after phase {phase.number}", model):
        tell_story(run, phase, model)
    moments = read_moments(model, optimizers)
    optimizers[0].leave_parameters()  # with lean memory a boundary's backward pass would move them
    save_after_phase(run, phase, checksum, moments)
    return moments


def phase_rates(config: TrainingConfig, phase: Phase) -> Callable[[int], float]:
    """The learning rate of each step of a phase.

    A phase begins where the one before it ended, and ends at `final_lr_share` of its peak.
    """

    def end(phase: Phase) -> float:
        return config.learning_rate(phase.number) * config.final_lr_share

    start = end(phase.before) if phase.before and config.steps(phase.before.number) else 0.0
    peak = config.learning_rate(phase.number)
    n_steps = config.steps(phase.number)
    return lambda step: learning_rate(step, n_steps, start, peak, end(phase), config.warmup_steps)
