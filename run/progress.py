"""How far a run has come: what it counts, in one object that the run holds and its saved state keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Its fields are what is saved: a new counter is one field more.

    steps: the number of the next training batch; a run that begins in a later phase leaves out the batches before.
    tokens: that this run has trained on. flops: counted, of this run.
    skipped_steps: see training/bad_steps.py.
    losses: held-out, in nats a token, by the names of the history's `summary` row.
    seconds: of the run, without the time between a stop and a resume; phase_seconds: of the present phase. Both as of the
        last `tick`.
    """

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    phase_seconds: float = 0.0

    def __post_init__(self):
        self.start_clock(time.perf_counter())

    def start_clock(self, now: float) -> None:
        self._last_tick = now

    def begin_phase(self, seconds: float) -> None:
        """With what the phase has taken already, where it was stopped."""
        self.tick()
        self.phase_seconds = seconds

    def tick(self) -> None:
        """Moves the clocks on to now."""
        now = time.perf_counter()
        self.seconds += now - self._last_tick
        self.phase_seconds += now - self._last_tick
        self._last_tick = now

    def count_step(self, tokens: int, flops: float) -> None:
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.tick()

    def count_skips(self, is_skipped: bool) -> None:
        """Of one step, once the host has heard whether it was taken."""
        self.skipped_steps += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0
