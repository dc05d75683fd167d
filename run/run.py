"""What a run carries through its three phases."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig
from data import StoryData
from models import Transformer
from phases import LAUNCHERS_NAME, MODEL_NAMES, STATE_NAME
from report.history import History, NoHistory
from run.run_state import RunState, forget_shards
from run.saver import Saver
from run.stop import StopSignals
from training import ranks
from training.device import to_device
from training.flops import step_flops
from training.plan import Plan
from transfer.optimizer_growth import State


@dataclass
class Run:
    """Settings, data and record of one run, and how far it has come.

    `saved` is where it begins, and `entry` the model and the moments with which; each is taken once.
    """

    config: TrainingConfig
    device: torch.device
    compute_dtype: torch.dtype | None
    data: StoryData
    heldout: list[Tensor]
    plan: Plan
    folder: Path
    history: History | NoHistory
    steps_done: int = 0
    flops_done: float = 0.0  # counted, trials of growth included
    skipped_steps: int = 0  # see training/bad_steps.py
    skipped_in_a_row: int = 0
    losses: dict[str, float] = field(default_factory=dict)  # what the closing summary prints
    stories: dict = field(default_factory=dict)  # their fingerprint
    facts: dict = field(default_factory=dict)  # versions and machine
    saved: RunState | None = None
    entry: tuple[Transformer, State] | None = None
    saver: Saver | None = None
    stop: StopSignals = field(default_factory=StopSignals)
    seconds_before: float = 0.0  # until it was stopped
    started: float = field(default_factory=time.perf_counter)

    def model_path(self, phase: int) -> Path:
        return self.folder / MODEL_NAMES[phase]

    def enter(self) -> tuple[int, Transformer, State]:
        """The phase in which the run begins, the model with which, and the optimizers' moments."""
        (model, moments), self.entry = self.entry, None
        return self.saved.phase, model, moments

    def take_saved(self) -> RunState | None:
        """Where the phase that is now beginning was stopped; None for one that begins at its beginning."""
        saved, self.saved = self.saved, None
        return saved

    def batch(self, number: int) -> Tensor:
        """This rank's rows of a training batch, on its device."""
        return to_device(ranks.own_rows(self.data.train_batch(number), self.config.accumulate), self.device)

    def forget_state(self) -> None:
        """Deletes the saved state of a run that is complete: it is as large as the models, and of no more use."""
        self.saver.wait()
        self.history.sync()
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        (self.folder / LAUNCHERS_NAME).unlink(missing_ok=True)
        forget_shards(self.folder)

    def count_step(self, model: ModelConfig) -> None:
        self.steps_done += 1
        self.flops_done += step_flops(model, self.config.batch_size)

    @property
    def tokens_seen(self) -> int:
        return self.steps_done * self.config.batch_size * self.config.context_length

    @property
    def seconds(self) -> float:
        """That the run has taken, without the time between a stop and a resume."""
        return self.seconds_before + time.perf_counter() - self.started
