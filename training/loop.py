"""One phase of training."""

from __future__ import annotations

import torch
from tqdm import tqdm

from models import Transformer, next_token_loss, router_loss, save_model
from training.optimizer import build_optimizers, read_state, set_learning_rate, write_state
from training.records import StepRows, record_evaluation, record_liveness, tell_story
from training.report import phase_header
from training.run import Run
from training.schedule import learning_rate
from transfer.liveness import GradientCoverage
from transfer.optimizer_growth import State

# Long enough for every new parameter to have had its turn, short enough to cost nothing.
LIVENESS_STEPS = 20


def train_phase(run: Run, phase: int, model: Transformer, state: State | None = None) -> State:
    """Trains the model in place for the steps of its phase, records it, and saves it.

    Args:
        state: moments to go on with, grown from those of the phase before; those missing start afresh.
    Returns:
        The moments at the end.
    Raises:
        UserError: the loss is no longer a number, or the disk is full.
    """
    config, data = run.config, run.data
    steps, peak = config.steps(phase), config.learning_rate(phase)
    model.compute_dtype = run.compute_dtype
    print(phase_header(phase, steps, peak, run.device, run.plan.counts[phase - 1], model.config))
    optimizers = build_optimizers(model, config.weight_decay)
    write_state(model, optimizers, state or {})
    rows = StepRows(run, phase)
    coverage = GradientCoverage(model, run.plan.models[phase - 2]) if phase > 1 else None
    first_rate = 0.0 if phase == 1 else config.learning_rate(phase - 1) * config.final_lr_share

    with tqdm(total=steps, desc=f"phase {phase}", unit="step", disable=None, leave=False) as bar:
        for step in range(steps):
            rate = learning_rate(step, steps, first_rate, peak, peak * config.final_lr_share, config.warmup_steps)
            set_learning_rate(optimizers, rate)
            tokens_BT = data.train_batch(run.steps_done).to(run.device)
            loss, routings = next_token_loss(model, tokens_BT)
            (loss + router_loss(routings, config.balance_weight, config.z_weight)).backward()
            if coverage:
                coverage.update()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.steps_done += 1

            rows.add(step, loss, grad_norm, rate)
            if step % config.log_every == 0 or step == steps - 1:
                rows.write(routings)
            if (step + 1) % config.eval_every == 0 and step != steps - 1:
                record_evaluation(run, phase, step, model)
            if coverage and step + 1 == min(LIVENESS_STEPS, steps):
                record_liveness(run, phase, model, step + 1, coverage)
                coverage = None
            bar.update()

    run.losses[f"phase{phase}_final"] = record_evaluation(run, phase, steps - 1, model)
    tell_story(run, phase, model)
    save_model(model, run.model_path(phase))
    return read_state(model, optimizers)
