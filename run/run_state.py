"""`run_state.pt`: all that a run needs to go on as if it had never been stopped.

No random state is in it: batches, weights, noise and routers are functions of the seed and of a step or a
name (data/batches.py, transfer/random_streams.py), and nothing draws from a global generator.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import TrainingConfig, UserError
from durable_files import DamagedFile, read_tensors, reason, write_tensors
from phases import STATE_NAME
from run.progress import Progress
from transfer.optimizer_growth import Moments

SHARD_FOLDERS = ("run_state.a", "run_state.b")  # of several ranks: see run/state_shards.py
FORMAT = "bilateral-growth-run/6"


@dataclass
class RunState:
    """Where a run is, after a step or after a phase.

    phase, step: the next step is number `step` of `phase`.
    is_complete: the phase is over, and its weights are in its model file, whose checksum is
        `model_checksum` ("" where the run was started from that file).
    weights: by parameter name, fp32, or in two parts (models/lean.py); None where `is_complete`, and before the first step.
    moments: the optimizers', by parameter name.
    progress: how far the run has come, in the file as a dict.
    rows: figures of steps that are not in the history yet, as `StepRows` holds them.
    coverage: of `GradientCoverage`, while it watches.
    history_bytes, history_crc: how far the history had come.
    config, data, facts: what must be the same, or may be only knowingly different; settings as they were given.
    settled: the settings that `grow_when` made others of, and these.
    shards: of several ranks: `folder` beside the file, `sha256` of each file in it, and whether it `has_weights`. Weights
        and moments are there, but for moments that are one number.
    """

    config: dict
    data: dict
    facts: dict
    settled: dict = field(default_factory=dict)
    phase: int = 1
    step: int = 0
    is_complete: bool = False
    model_checksum: str = ""
    weights: dict[str, Tensor] | None = None
    moments: Moments = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    rows: list[tuple] = field(default_factory=list)
    coverage: dict | None = None
    history_bytes: int = 0
    history_crc: int = 0
    shards: dict | None = None

    @property
    def position(self) -> float:
        """Of the run, in phases: 2 inside phase 2, 2.5 once it is over."""
        return self.phase + 0.5 * self.is_complete


def write_run_state(state: RunState, folder: Path) -> None:
    """Replaces the folder's state, atomically; shards that it does not name are deleted.

    Raises:
        UserError: it cannot be written; the state before it is still there.
    """
    path = folder / STATE_NAME
    try:
        content = {name: value for name, value in vars(state).items() if name != "shards" or value}
        write_tensors({"format": FORMAT, **content, "progress": dataclasses.asdict(state.progress)}, path)
    except (OSError, RuntimeError) as error:
        kept = "the state saved before is whole: free some space, then go on with --resume"
        advice = kept if path.exists() else "free some space, or choose another --checkpoint-dir"
        raise UserError(f"could not write {path}: {reason(error)}; {advice}") from error
    forget_shards(folder, keep=state.shards and state.shards["folder"])


def forget_shards(folder: Path, keep: str | None = None) -> None:
    """Deletes what ranks have saved, but for the folder `keep`."""
    for name in SHARD_FOLDERS:
        if name != keep:
            shutil.rmtree(folder / name, ignore_errors=True)


def read_run_state(folder: Path, mmap: bool = False) -> RunState:
    """The folder's state, its tensors on the CPU; no code in the file is run.

    Args:
        mmap: leaves tensors on the disk until they are used, for ranks that use only a part of each.

    Raises:
        UserError: there is none, one bit of it has changed, or another version wrote it.
    """
    path = folder / STATE_NAME
    try:
        content, _ = read_tensors(path, mmap=mmap)
    except DamagedFile as error:
        raise damaged(path, error) from error
    return checked(path, content)


def read_saved_config(folder: Path) -> TrainingConfig:
    """The settings in the folder's state, without reading its tensors; `read_run_state` is what checks them.

    Raises:
        UserError: as `read_run_state`.
    """
    path = folder / STATE_NAME
    try:
        state = checked(path, torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        if state.config.keys() != names_in(TrainingConfig):
            raise of_another_version(path, "whose settings are others")
        config = TrainingConfig(**state.config)
        config.validate()
    except UserError:
        raise
    except Exception as error:  # damage may show in any way, and is all that can be wrong here
        raise damaged(path, DamagedFile("it cannot be read")) from error
    return config


def checked(path: Path, content: object) -> RunState:
    """Raises UserError where `content` is not what this version writes: it is whole, and of another one or none."""
    found = content.pop("format", None) if isinstance(content, dict) else None
    content = {"shards": None, **content} if found == FORMAT else {}
    progress = content.get("progress", {})
    if content.keys() != names_in(RunState) or progress.keys() != names_in(Progress):
        raise of_another_version(path, found)
    return RunState(**content | {"progress": Progress(**progress)})


def of_another_version(path: Path, found: object) -> UserError:
    whose = f": another one wrote it ({found}); go on with that one, or" if isinstance(found, str) else ";"
    return UserError(f"{path} is no run state of this version ({FORMAT}){whose} start again with --overwrite")


def names_in(kind: type) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def damaged(path: Path, error: DamagedFile) -> UserError:
    return UserError(
        f"{path} is damaged ({error}); put a good copy back, or start again with --overwrite, "
        f"or with --start-phase from a finished model"
    )
