"""How a run that cannot go on ends: its exit code, and what its user can do."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from command_line import NOBODY_READS, Ending, is_out_of_memory, one_line, quoted
from config import TrainingConfig, UserError
from phases import STATE_NAME
from run.resume import RunComplete, may_differ
from run.run import Run
from run.stop import Stopped
from training import torchrun
from training.machine import GB
from training.plan import as_flags, halved_batches, memory_of_phases, peak_of, smaller_growths

OUT_OF_MEMORY = (
    "lower --batch-size (4 in place of 8), or grow less: --scale-factor 1.5 --extra-layers 2. "
    "--plan shows what each phase needs; the models of finished phases are safe"
)


class RunEnding(Ending):
    """Knows as much of the run as there is by then: `config` once it is read, `run` once it has begun."""

    config: TrainingConfig | None = None
    run: Run | None = None

    def of(self, error: BaseException) -> tuple[int, str] | None:
        if isinstance(error, RunComplete):
            return 0, str(error)
        if isinstance(error, Stopped):
            return error.exit_code, f"{error}; {self.how_to_go_on()}"
        if torchrun.is_lost(error):
            n_steps = self.run.progress.steps if self.run else 0
            return torchrun.RANK_LOST, f"error: {torchrun.lost_line(error, n_steps)}; {self.how_to_go_on()}"
        if isinstance(error, BrokenPipeError):
            said = f"error: nobody reads what this run prints; {self.how_to_go_on()}"
            return NOBODY_READS, said if self.run else ""
        if isinstance(error, OSError):  # of a path that cannot be one, or of a terminal or a log that takes no more
            return 2, f"error: {one_line(error)}; {self.how_to_go_on()}"
        self.out_of_memory = out_of_memory(self.run) if is_out_of_memory(error) else ""
        return super().of(error)

    def say(self, line: str, error: BaseException) -> None:
        if isinstance(error, RunComplete):
            print(line)
        elif isinstance(error, (UserError, Stopped)):
            torchrun.say_once(line, is_everybodys=type(error) is not UserError)
        else:
            print(line, file=sys.stderr)

    def how_to_go_on(self) -> str:
        """The command that goes on with a stopped run; or that there is nothing to go on with."""
        if self.config is None or not os.path.exists(Path(self.config.checkpoint_dir) / STATE_NAME):
            return "nothing has been trained yet: start again"
        return f"go on with: {resume_command(self.config)}"


def resume_command(config: TrainingConfig) -> str:
    folder = config.checkpoint_dir
    flag = "" if folder == TrainingConfig.checkpoint_dir else f" --checkpoint-dir {quoted(folder)}"
    return f"{torchrun.launch_command()} train_tinystories.py --resume{flag}"


def out_of_memory(run: Run | None) -> str:
    """The ways out with what they need by this run's plan, and how to take them from the saved state."""
    if run is None:
        return OUT_OF_MEMORY
    config, plan = run.config, run.plan

    def need(**changes) -> float:
        changed = dataclasses.replace(config, **changes)
        is_lean = plan.is_lean or changed.memory == "lean"
        return peak_of(memory_of_phases(changed, plan.models[0], plan.machine, is_lean)) / GB

    lean = {"memory": "lean", "accumulate": 1}
    changes = [lean, *halved_batches(config, plan.machine.n_ranks)[:1], *smaller_growths(config)[:1]]
    ways = []
    for change in changes[plan.is_lean or plan.machine.n_ranks > 1 :]:
        if not all(may_differ(name, run.saver.position) for name in change):  # growth, once it is done
            continue
        flags = as_flags({name: value for name, value in change.items() if value != getattr(config, name)})
        if not flags:
            continue
        try:
            ways.append(f"{flags} needs {need(**change):.3g} GB")
        except UserError:  # 1.5 gives no whole number of heads here
            continue
    return (
        f"this run plans for {need():.3g} GB at its peak; {', '.join(ways) or 'free memory on this machine'}. "
        f"What was saved is safe: {resume_command(config)}{', with one of these' if ways else ''}"
    )
