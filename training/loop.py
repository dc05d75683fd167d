"""One phase of training."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from config import TrainingConfig
from models import Transformer, save_model
from training.device import to_device
from training.grow_when import Grow, trial_steps, try_growth
from training.optimizer import read_state, write_state
from training.records import StepRows, record_evaluation, record_liveness, record_trial, tell_story
from training.report import phase_header
from training.run import Run
from training.schedule import learning_rate
from training.step import prepare_training, train_step
from transfer.liveness import GradientCoverage
from transfer.optimizer_growth import State

# Long enough for every new parameter to have had its turn, short enough to cost nothing.
LIVENESS_STEPS = 20


def train_phase(
    run: Run, phase: int, model: Transformer, state: State | None = None, grow: Grow | None = None
) -> State:
    """Trains the model in place through its phase, records it, and saves it.

    Args:
        state: moments to go on with, grown from those of the phase before; those missing start afresh.
        grow: makes the next phase's model; with `grow_when = "auto"` trials of it end the phase.
    Returns:
        The moments at the end.
    Raises:
        UserError: the loss is no longer a number, or the disk is full.
    """
    config, data = run.config, run.data
    trials = trial_steps(config.steps(phase)) if grow and config.grow_when == "auto" else []
    steps = trials[-1] if trials else config.steps(phase)
    print(phase_header(phase, steps, config.learning_rate(phase), run.device, run.plan.counts[phase - 1], model.config))
    # Before the optimizers, which with lean memory free the gradients that it looks at.
    coverage = GradientCoverage(model, run.plan.models[phase - 2]) if phase > 1 else None
    optimizers = prepare_training(model, config, run.compute_dtype, run.plan.is_lean)
    write_state(model, optimizers, state or {})
    rate_at = phase_rates(config, phase, steps)
    rows = StepRows(run, phase)

    step = -1
    with tqdm(total=steps, desc=f"phase {phase}", unit="step", disable=None, leave=False) as bar:
        for step in range(steps):
            tokens_BT = to_device(data.train_batch(run.steps_done), run.device)
            loss, routings, grad_norm = train_step(model, optimizers, tokens_BT, rate_at(step), config)
            run.count_step(model.config)

            is_last = step == steps - 1
            rows.add(step, loss, grad_norm, rate_at(step))
            if step % config.log_every == 0 or is_last:
                rows.write(routings)
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

    if rows.rows:
        rows.write(routings)
    if coverage and coverage.steps:
        record_liveness(run, phase, model, step + 1, coverage)
        coverage.close()
    run.losses[f"phase{phase}_final"] = record_evaluation(run, phase, step, model)
    tell_story(run, phase, model)
    save_model(model, run.model_path(phase))
    return read_state(model, optimizers)


def phase_rates(config: TrainingConfig, phase: int, steps: int) -> Callable[[int], float]:
    """The learning rate of each step of a phase.

    A phase ends at `final_lr_share` of its peak. One whose end is open cannot fall towards it: it holds its peak.
    """
    is_open = config.grow_when == "auto"
    shares = [1.0 if is_open and p < 3 else config.final_lr_share for p in (1, 2, 3)]
    start = 0.0 if phase == 1 or config.steps(phase - 1) == 0 else config.learning_rate(phase - 1) * shares[phase - 2]
    peak = config.learning_rate(phase)
    return lambda step: learning_rate(step, steps, start, peak, peak * shares[phase - 1], config.warmup_steps)
