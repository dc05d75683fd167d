"""What of a run goes into its saved state, after a step and after a phase."""

from __future__ import annotations

import dataclasses

import torch

from models import Transformer
from models.shards import own
from run.records import StepRows
from run.run import Run
from run.run_state import RunState
from training import ranks
from training.optimizer import read_state
from transfer.gradient_coverage import GradientCoverage
from transfer.optimizer_growth import State


def save_if_due(
    run: Run,
    phase: int,
    step: int,
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    rows: StepRows,
    coverage: GradientCoverage | None,
) -> None:
    """Saves the run's state, its next step being number `step`, if it is time to or a signal came.

    Raises:
        UserError: the state cannot be written.
        Stopped: a signal came; the state is on the disk.
    """
    memory = run.plan.memory[phase - 1]
    is_due = ranks.is_first() and run.saver.is_due(memory.weights + memory.optimizer)
    signal, is_due = ranks.largest(run.stop.received, is_due)
    run.stop.hear(signal)
    if not (signal or is_due):
        return
    is_sound = rows.last_was_taken and all(own(parameter).isfinite().all() for parameter in model.parameters())
    if any(ranks.largest(not is_sound)):
        # Steps are being skipped, or one has ruined the model: the state to go back to is the one before.
        run.stop.raise_if_asked(f"after step {step - 1} of phase {phase}, which could not be trusted and is not saved")
        return
    run.saver.save(
        dataclasses.replace(
            state_of(run, phase, step),
            weights=model.state_dict(),
            moments=read_state(model, optimizers),
            rows=list(rows.rows),
            coverage=coverage.state() if coverage else None,
            phase_seconds=rows.seconds,
        )
    )
    if run.stop.is_asked:
        run.saver.wait()
        run.stop.raise_if_asked(f"after step {step - 1} of phase {phase}, and saved")


def save_after_phase(run: Run, phase: int, model_checksum: str, moments: State) -> None:
    """Saves the run's state at the end of a phase, whose model is on the disk already."""
    # No phase comes after the third: nothing will ask for its moments.
    kept = moments if phase < 3 else {}
    state = state_of(run, phase, step=0)
    run.saver.save(
        dataclasses.replace(state, is_complete=True, model_checksum=model_checksum, moments=kept), unchanging=True
    )


def state_of(run: Run, phase: int, step: int) -> RunState:
    """The run's state but for its tensors; the history is on the disk as far as the state says."""
    run.history.sync()
    return RunState(
        config=dataclasses.asdict(run.config),
        data=run.stories,
        facts=run.facts,
        phase=phase,
        step=step,
        steps_done=run.steps_done,
        flops_done=run.flops_done,
        skipped_steps=run.skipped_steps,
        skipped_in_a_row=run.skipped_in_a_row,
        losses=dict(run.losses),
        history_bytes=run.history.n_bytes,
        history_crc=run.history.crc,
        seconds=run.seconds,
    )
