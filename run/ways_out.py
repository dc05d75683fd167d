"""What a run that cannot go on tells its user to do."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from config import TrainingConfig, UserError
from phases import STATE_NAME
from run.resume import may_differ
from run.run import Run
from training import ranks
from training.plan import GB, OUT_OF_MEMORY_ADVICE, as_flags, memory_of_phases, peak_of


def how_to_go_on(config: TrainingConfig | None) -> str:
    """The command that goes on with a stopped run; or that there is nothing to go on with."""
    if config is None or not os.path.exists(Path(config.checkpoint_dir) / STATE_NAME):
        return "nothing has been trained yet: start again"
    return f"go on with: {resume_command(config)}"


def resume_command(config: TrainingConfig) -> str:
    folder = (
        "" if config.checkpoint_dir == TrainingConfig.checkpoint_dir else f" --checkpoint-dir {config.checkpoint_dir}"
    )
    launcher = "python"
    if ranks.planned_count() > 1:
        is_one_machine = ranks.planned_count() == ranks.planned_count_here()
        launcher = f"torchrun --nproc-per-node={ranks.planned_count_here()}" + " …" * (not is_one_machine)
    return f"{launcher} train_tinystories.py --resume{folder}"


def out_of_memory_advice(run: Run | None) -> str:
    """The card's two ways out with what they need by this run's plan, and how to take them from the saved state."""
    if run is None:
        return OUT_OF_MEMORY_ADVICE
    config, plan = run.config, run.plan

    def need(**changes) -> float:
        changed = dataclasses.replace(config, **changes)
        is_lean = plan.is_lean or changed.memory == "lean"
        return peak_of(memory_of_phases(changed, plan.models[0], plan.machine, is_lean)) / GB

    changes = [
        {"memory": "lean", "accumulate": 1},
        {"batch_size": max(1, config.batch_size // 2), "accumulate": 1},
        {"scale_factor": 1.5, "extra_layers": 2},
    ]
    ways = []
    for change in changes[plan.is_lean or plan.machine.n_ranks > 1 :]:
        if not all(may_differ(name, run.saver.position) for name in change):  # growth, once it is done
            continue
        flags = as_flags({name: value for name, value in change.items() if value != getattr(config, name)})
        try:
            ways.append(f"{flags} needs {need(**change):.3g} GB")
        except UserError:  # 1.5 gives no whole number of heads here
            continue
    return (
        f"out of memory. This run plans for {need():.3g} GB at its peak; {', '.join(ways)}. "
        f"What was saved is safe: {resume_command(config)}, with one of these"
    )
