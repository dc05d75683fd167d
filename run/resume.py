"""Going on with a saved run: which settings may differ, and what it goes on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig, UserError
from models import Transformer, build_dense_model
from models.files import load_model_and_checksum
from models.lean import take_weights
from models.shards import is_shared, shared_as
from phases import PHASES, phase_of
from report.history import NEUTRAL
from run.run_state import RunState
from training.ranks import team
from transfer.optimizer_growth import widened

# What each way of making a phase's model takes from the settings.
MADE_WITH = {
    "": (),
    "upcycle": ("n_experts", "top_k", "router_std"),
    "grow": ("scale_factor", "extra_layers", "noise_std", "grow_optimizer"),
}
# Up to where in the run a setting may differ from the saved one, in phases: 1 is "while phase 1 lasts",
# 1.5 "until phase 2 begins". What is not here may always differ: it changes how training goes on, and
# not what has been done.
MAY_DIFFER_UNTIL = {
    **dict.fromkeys(("preset", "start_phase", "seed", "context_length"), 0.0),
    **dict.fromkeys(("architecture", "d_model", "n_layers", "n_heads"), 0.0),
    **dict.fromkeys(("grow_when", "eval_batches"), 0.0),
    **{name: phase.number - 0.5 for phase in PHASES for name in MADE_WITH[phase.made_by]},
    **{f"{name}_phase{phase.number}": float(phase.number) for phase in PHASES for name in ("steps", "lr")},
}
# How a run is looked at, and where its stories are, which have to be the same: the history has other rows, the models
# come out the same.
WATCHING = ("log_every", "eval_every", "sample_tokens", "check_tolerance", "ignore_failed_checks")
WATCHING += ("data", "valid_data", "tokenizer")


class RunComplete(UserError):
    """`--resume` where nothing is left to do."""

    exit_code = 0


def may_differ(name: str, position: float) -> bool:
    """Whether a setting may still differ from that of a run at `position`, see `RunState`."""
    return MAY_DIFFER_UNTIL.get(name, len(PHASES)) >= position


def changed_settings(saved: RunState, config: TrainingConfig) -> dict[str, list]:
    """Every setting that differs, as [saved, now].

    Raises:
        UserError: one of them can no longer differ; the text names all of these, and those that may.
    """
    now = dataclasses.asdict(config)
    changes = {name: [saved.config.get(name), now[name]] for name in now if name not in NEUTRAL}
    changes = {name: pair for name, pair in changes.items() if pair[0] != pair[1]}
    fixed = [name for name in changes if not may_differ(name, saved.position)]
    if fixed:
        may = [name for name in now if may_differ(name, saved.position)]
        differ = ", ".join(f"{name} (saved {changes[name][0]}, given {changes[name][1]})" for name in fixed)
        raise UserError(
            f"the saved run is {'after' if saved.is_complete else 'in'} phase {saved.phase}, where these settings can "
            f"no longer differ from its own: {differ}; leave them out, or start a new run "
            f"in another --checkpoint-dir. These may differ: {', '.join(may)}"
        )
    steps = f"steps_phase{saved.phase}"
    if steps in changes and now[steps] <= saved.step:
        raise UserError(f"{steps} is {now[steps]}, but the saved run has done {saved.step} of them; give more")
    if saved.progress.steps * saved.config["batch_size"] % config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, but the saved run has read {saved.progress.steps} batches of "
            f"{saved.config['batch_size']}, which are no whole number of those; give half of it, or leave it out"
        )
    return changes


def cost_of_changes(changes: dict[str, list]) -> str:
    """What the run no longer is, in words, after such changes of settings and facts."""
    if set(changes) <= set(WATCHING):
        return "The models will be the same, the history will not"
    return "The run is no longer, bit for bit, the one that was never stopped"


def entry_model(saved: RunState, folder: Path, geometry: ModelConfig, seed: int) -> Transformer:
    """The model with which a run goes on from `saved`, on the CPU; a new one where it begins; on meta and unfilled where
    its weights are in shards.

    Args:
        geometry: what the config makes of the phase `saved.phase`.
    Raises:
        UserError: the model is missing or damaged, is not the saved run's, or its geometry is another one.
    """
    if saved.is_complete:
        model_path = phase_of(saved.phase).path_in(folder)
        model, checksum = load_model_and_checksum(model_path, mmap=not team().is_alone)
        if saved.model_checksum and checksum != saved.model_checksum:
            raise UserError(f"{model_path} is not the model that the saved run wrote; put that back")
        require_geometry(str(model_path), model.config, geometry)
        return model
    if saved.weights is None and not saved.shards:
        return build_dense_model(geometry, seed=seed)
    with torch.device("meta"):
        model = Transformer(geometry)
    if saved.shards:
        return model
    take_weights(model, saved.weights)
    return model.requires_grad_(True)


def require_geometry(name: str, found: ModelConfig, wanted: ModelConfig) -> None:
    """Raises UserError naming every field in which the model differs from what the config makes of it."""
    pairs = zip(dataclasses.asdict(found).items(), dataclasses.asdict(wanted).values())
    differ = [f"{field} {value}, here {other}" for (field, value), other in pairs if value != other]
    if differ:
        raise UserError(f"{name} has another geometry than this run: {'; '.join(differ)}; give the settings it had")


def on_device(moments: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """Moments where their optimizer keeps them: beside their parameter, and shared as that is, where ranks share it.

    Muon's count of steps, an integer, stays on the host. Ranks have no momentum in one byte.
    """
    moments = widened(moments) if is_shared(parameter) else moments
    moments = {k: value if value.dtype == torch.int64 else value.to(parameter.device) for k, value in moments.items()}
    return {key: shared_as(value, parameter) if value.ndim else value for key, value in moments.items()}
