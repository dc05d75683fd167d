"""What of a run goes into its saved state, after a step and after a phase."""

from __future__ import annotations

import copy
import dataclasses

import torch

from models import Transformer
from models.shards import own
from phases import Phase
from run.liveness_watch import LivenessWatch
from run.records import StepRows
from run.run import Run
from run.run_state import RunState
from training.optimizer import read_moments
from training.ranks import team
from transfer.optimizer_growth import Moments


def save_if_due(
    run: Run,
    phase: Phase,
    step: int,
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    rows: StepRows,
    liveness: LivenessWatch,
) -> None:
    """Saves the run's state, its next step being number `step`, if it is time to or a signal came.

    Raises:
        UserError: the state cannot be written.
        Stopped: a signal came; the state is on the disk.
    """
    memory = run.plan.memory[phase.number - 1]
    is_due = team().is_first and run.saver.is_due(memory.weights + memory.optimizer)
    signal, is_due = team().largest(run.stop.received, is_due)
    run.stop.hear(signal)
    if not (signal or is_due):
        return
    is_sound = rows.last_was_taken and all(own(parameter).isfinite().all() for parameter in model.parameters())
    if any(team().largest(not is_sound)):
        # Steps are being skipped, or one has ruined the model: the state to go back to is the one before.
        run.stop.raise_if_asked(
            f"after step {step - 1} of phase {phase.number}, which could not be trusted and is not saved"
        )
        return
    with run.aside():
        run.saver.save(
            dataclasses.replace(
                state_of(run, phase, step),
                weights=model.state_dict(),
                moments=read_moments(model, optimizers),
                rows=list(rows.rows),
                coverage=liveness.state(),
            )
        )
    if run.stop.is_asked:
        run.saver.wait()
        run.stop.raise_if_asked(f"after step {step - 1} of phase {phase.number}, and saved")


def save_after_phase(run: Run, phase: Phase, model_checksum: str, moments: Moments) -> None:
    """Saves the run's state at the end of a phase, whose model is on the disk already."""
    # After the last phase nothing will ask for its moments.
    kept = moments if phase.after else {}
    state = state_of(run, phase, step=0)
    run.saver.save(
        dataclasses.replace(state, is_complete=True, model_checksum=model_checksum, moments=kept), unchanging=True
    )


def state_of(run: Run, phase: Phase, step: int) -> RunState:
    """The run's state but for its tensors; the history is on the disk as far as the state says."""
    run.history.sync()
    run.progress.tick()
    return RunState(
        **run.identity,
        phase=phase.number,
        step=step,
        progress=copy.deepcopy(run.progress),
        history_bytes=run.history.n_bytes,
        history_crc=run.history.crc,
    )
