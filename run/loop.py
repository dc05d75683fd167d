"""One phase of training."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from config import TrainingConfig
from models import Transformer, save_model
from run.console import phase_header
from run.grow_when import Grow, trial_steps, try_growth
from run.records import StepRows, record_evaluation, record_liveness, record_trial, tell_story
from run.run import Run
from run.run_state import RunState
from run.snapshots import save_after_phase, save_if_due
from training import ranks
from training.optimizer import read_state, write_state
from training.schedule import learning_rate
from training.step import prepare_training, train_step
from transfer.gradient_coverage import GradientCoverage
from transfer.optimizer_growth import State

# Long enough for every new parameter to have had its turn, short enough to cost nothing.
LIVENESS_STEPS = 20


def train_phase(
    run: Run, phase: int, model: Transformer, state: State | None = None, grow: Grow | None = None
) -> State:
    """Trains the model in place through its phase, records it, and saves it.

    A phase in which the run was stopped goes on there; one that was over then is not trained again.

    Args:
        state: moments to go on with, grown from those of the phase before; those missing start afresh.
        grow: makes the next phase's model; with `grow_when = "auto"` trials of it end the phase.
    Returns:
        The moments at the end.
    Raises:
        UserError: the loss is no longer a number, or the disk is full.
        Stopped: a signal asked for it; the run's state is saved.
    """
    model.compute_dtype = run.compute_dtype
    saved = run.take_saved()
    if saved and saved.is_complete:
        return state
    with run.stop.held():
        moments = train_steps(run, phase, model, state, grow, saved)
    run.stop.hear(*ranks.largest(run.stop.received))
    run.stop.raise_if_asked(f"after phase {phase}, and saved")
    return moments


def train_steps(
    run: Run, phase: int, model: Transformer, state: State | None, grow: Grow | None, saved: RunState | None
) -> State:
    """As `train_phase`, from where `saved` says."""
    config = run.config
    trials = trial_steps(config.steps(phase)) if grow and config.grow_when == "auto" else []
    steps = trials[-1] if trials else config.steps(phase)
    print(phase_header(phase, steps, config.learning_rate(phase), run.device, run.plan.counts[phase - 1], model.config))
    run.saver.wait()  # what it may still be writing is the phase before, whose memory this one needs
    # Before the optimizers, which with lean memory free the gradients that it looks at.
    watches = phase > 1 and (saved is None or saved.coverage is not None)
    coverage = GradientCoverage(model, run.plan.models[phase - 2]) if watches else None
    if coverage and saved:
        coverage.go_on_from(saved.coverage)
    optimizers = prepare_training(model, config, run.compute_dtype, run.plan.is_lean)
    write_state(model, optimizers, state or {})
    rate_at = phase_rates(config, phase, steps)
    first = saved.step if saved else 0
    rows = StepRows(run, phase, saved.rows, saved.phase_seconds) if saved else StepRows(run, phase)

    step = first - 1
    hidden = None if ranks.is_first() else True  # None: shown on a terminal
    with tqdm(total=steps, initial=first, desc=f"phase {phase}", unit="step", disable=hidden, leave=False) as bar:
        for step in range(first, steps):
            tokens_BT = run.batch(run.steps_done)
            loss, layers, grad_norm = train_step(model, optimizers, tokens_BT, rate_at(step), config)
            run.count_step(model.config)

            is_last = step == steps - 1
            rows.add(step, loss, grad_norm, rate_at(step))
            if step % config.log_every == 0 or is_last:
                rows.write(layers)
            if (step + 1) % config.eval_every == 0 and not is_last:
                record_evaluation(run, phase, step, model)
            if coverage:
                coverage.steps += 1
                if coverage.steps == LIVENESS_STEPS:
                    record_liveness(run, phase, model, step + 1, coverage)
                    coverage.close()
                    coverage = None
            bar.update()
            if step + 1 in trials and not is_last:
                trial = try_growth(run, model, read_state(model, optimizers), rate_at(step), grow)
                if trial:
                    record_trial(run, phase, step, trial)
                if trial and trial.pays:
                    break
            save_if_due(run, phase, step + 1, model, optimizers, rows, coverage)

    if rows.rows:
        rows.write(layers)
    if coverage and coverage.steps:
        record_liveness(run, phase, model, step + 1, coverage)
        coverage.close()
    elif phase > 1 and step + 1 > LIVENESS_STEPS:
        record_liveness(run, phase, model, step + 1)
    run.losses[f"phase{phase}_final"] = record_evaluation(run, phase, step, model)
    tell_story(run, phase, model)
    checksum = ranks.as_first(save_model(model, run.model_path(phase)))
    moments = read_state(model, optimizers)
    optimizers[0].leave_parameters()  # with lean memory a boundary's backward pass would move them
    save_after_phase(run, phase, checksum, moments)
    return moments


def phase_rates(config: TrainingConfig, phase: int, steps: int) -> Callable[[int], float]:
    """The learning rate of each step of a phase.

    A phase ends at `final_lr_share` of its peak. One whose end is open cannot fall towards it: it holds its peak.
    """
    is_open = config.grow_when == "auto"
    shares = [1.0 if is_open and p < 3 else config.final_lr_share for p in (1, 2, 3)]
    start = 0.0 if phase == 1 or config.steps(phase - 1) == 0 else config.learning_rate(phase - 1) * shares[phase - 2]
    peak = config.learning_rate(phase)
    return lambda step: learning_rate(step, steps, start, peak, peak * shares[phase - 1], config.warmup_steps)
