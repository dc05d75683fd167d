"""Whether what growth added comes to life: watched for the first steps of a phase, printed and in the history."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from models import Transformer
from phases import Phase
from run.decoration import decoration
from run.run import Run
from run.run_state import RunState
from transfer.gradient_coverage import GradientCoverage
from transfer.liveness import liveness_report

# Long enough for every new parameter to have had its turn, short enough to cost nothing.
LIVENESS_STEPS = 20
T = TypeVar("T")


class LivenessWatch:
    """Of one phase: counts which new parameters have a gradient in its first steps, then reports, and once more at its end.

    It watches nothing in the first phase, in which nothing is grown. It has to be made before the optimizers, which
    with lean memory free the gradients that it looks at.

    Args:
        saved: where the phase was stopped; None for one that begins.
    """

    def __init__(self, run: Run, phase: Phase, model: Transformer, saved: RunState | None):
        self.run, self.phase, self.model = run, phase, model
        self.coverage: GradientCoverage | None = None
        if phase.before and (saved is None or saved.coverage is not None):
            self.coverage = self._guarded(lambda: self._begun(saved))

    def _begun(self, saved: RunState | None) -> GradientCoverage:
        coverage = GradientCoverage(self.model, self.run.plan.models[self.phase.before.number - 1])
        if saved:
            coverage.go_on_from(saved.coverage)
        return coverage

    def before_step(self, tokens_BT: Tensor) -> None:
        """Looks at the gradients of the first sequence of a batch: of all they would cost a step more for each."""
        if self.coverage:
            self._guarded(lambda: self.coverage.look_at_language_loss(tokens_BT[:1]))

    def after_step(self, n_steps: int) -> None:
        """Once the phase has done `n_steps`."""
        if self.coverage:
            self.coverage.steps += 1
            if self.coverage.steps == LIVENESS_STEPS:
                self._end(n_steps)

    def after_last_step(self, n_steps: int) -> None:
        if self.coverage:
            if self.coverage.steps:
                self._end(n_steps)
        elif self.phase.before and n_steps > LIVENESS_STEPS:
            record_liveness(self.run, self.phase, self.model, n_steps)

    def _end(self, n_steps: int) -> None:
        record_liveness(self.run, self.phase, self.model, n_steps, self.coverage)
        self._close()

    def state(self) -> dict | None:
        """For the run's saved state."""
        return self._guarded(self.coverage.state) if self.coverage else None

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; where it breaks, None, and nothing is watched from here on."""
        result = None
        with decoration(f"the count of new parameters that learn in phase {self.phase.number}", self.model) as watch:
            result = work()
        if watch.is_left_out:
            self._close()
            return None
        return result

    def _close(self) -> None:
        if self.coverage:
            self.coverage.close()
            self.coverage = None


def record_liveness(
    run: Run, phase: Phase, model: Transformer, steps: int, coverage: GradientCoverage | None = None
) -> None:
    """Prints and records whether the clones of the boundary before `phase` have parted, after `steps` of training."""
    with decoration(f"liveness after {steps} steps of phase {phase.number}", model):
        with run.aside():
            report = liveness_report(model, run.plan.models[phase.before.number - 1], run.heldout[0], coverage)
        tqdm.write(f"  Liveness after {steps} steps of phase {phase.number}:")
        for line in report.summary():
            tqdm.write(f"  {line}")
        run.history.write("liveness", phase=phase.number, steps=steps, **dataclasses.asdict(report))
