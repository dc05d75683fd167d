"""What a run carries through its phases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig
from data import StoryData
from models import Transformer
from phases import LAUNCHERS_NAME, STATE_NAME, Phase, phase_of
from report.history import History, NoHistory
from run.progress import Progress
from run.run_state import RunState, forget_shards
from run.saver import Saver
from run.stop import StopSignals
from training.device import to_device, wait_for
from training.flops import step_flops
from training.plan import Plan
from training.ranks import team
from training.step import counts_first
from transfer.optimizer_growth import Moments


@dataclass
class Run:
    """Settings, data and history of one run, and how far it has come.

    `began_at` is the state with which it began, and `entry` the model and the moments; each is taken once.
    `config` is what it trains by; `identity` is what its saved states say of it: settings, stories, facts, settled.
    """

    config: TrainingConfig
    data: StoryData
    heldout: list[Tensor]  # the batches of every held-out loss
    plan: Plan
    folder: Path
    history: History | NoHistory
    progress: Progress = field(default_factory=Progress)
    stop: StopSignals = field(default_factory=StopSignals)
    saver: Saver | None = None
    identity: dict = field(default_factory=dict)
    began_at: RunState | None = None
    entry: tuple[Transformer, Moments] | None = None
    _seconds_aside: float = field(default=0.0, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        return self.plan.machine.device

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """None is fp32."""
        return self.plan.machine.compute_dtype

    def enter(self) -> tuple[Phase, Transformer, Moments]:
        """The phase in which the run begins, and the model and the optimizers' moments with which."""
        (model, moments), self.entry = self.entry, None
        return phase_of(self.began_at.phase), model, moments

    def take_saved(self) -> RunState | None:
        """Where the phase that is now beginning was stopped; None for one that begins at its beginning."""
        saved, self.began_at = self.began_at, None
        return saved

    def batch(self, number: int) -> Tensor:
        """This process's rows of a training batch, on its device."""
        return to_device(team().own_rows(self.data.train_batch(number), self.config.accumulate), self.device)

    def count_step(self, model: ModelConfig) -> None:
        n_tokens = self.config.batch_size * self.config.context_length
        flops = step_flops(model, self.config.batch_size, counts_first(model, self.config))
        self.progress.count_step(n_tokens, flops)

    @property
    def tokens_seen(self) -> int:
        return self.progress.tokens

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside is none of the steps, whose speed is printed: measuring, saving."""
        wait_for(self.device)  # for steps that are still on their way
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds_aside += time.perf_counter() - began

    @property
    def seconds_of_steps(self) -> float:
        """By a clock that stands still in `aside`."""
        return time.perf_counter() - self._seconds_aside

    def forget_state(self) -> None:
        """Deletes the saved state of a run that is complete: it is as large as the models, and of no more use."""
        self.saver.wait()
        self.history.sync()
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        (self.folder / LAUNCHERS_NAME).unlink(missing_ok=True)
        forget_shards(self.folder)
