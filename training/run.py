"""What a run carries through its three phases."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import TrainingConfig, UserError
from data import StoryData, load_data
from training.device import choose_precision
from training.history import History
from training.plan import Plan, make_plan, require_memory

HISTORY_NAME = "training_history.jsonl"
MODEL_NAMES = {1: "dense_model.pt", 2: "moe_model_final.pt", 3: "large_moe_final.pt"}


@dataclass
class Run:
    """Settings, data and record of one run, and how far it has come."""

    config: TrainingConfig
    device: torch.device
    compute_dtype: torch.dtype | None
    data: StoryData
    heldout: list[Tensor]
    plan: Plan
    folder: Path
    history: History
    steps_done: int = 0
    losses: dict[str, float] = field(default_factory=dict)  # what the closing summary prints

    def model_path(self, phase: int) -> Path:
        return self.folder / MODEL_NAMES[phase]

    @property
    def tokens_seen(self) -> int:
        return self.steps_done * self.config.batch_size * self.config.context_length


def start_run(config: TrainingConfig, device: torch.device) -> Run:
    """Everything that can fail before training does, in the order of what it costs to find out.

    Raises:
        UserError: the folder is taken or not writable, the data cannot be used, the device
            computes wrongly, or the largest phase will not fit in memory.
    """
    folder = prepare_folder(config)
    compute_dtype = choose_precision(device, config)
    data = load_data(config)
    heldout = data.heldout_batches()
    plan = make_plan(config, data.tokenizer.n_vocab, device, compute_dtype)
    print(plan.table())
    require_memory(plan, config.ignore_memory_plan)
    history = History(folder / HISTORY_NAME)
    history.write(
        "run",
        torch=torch.__version__,
        python=platform.python_version(),
        commit=git_commit(),
        device=str(device),
        precision="bf16" if compute_dtype else "fp32",
        config=dataclasses.asdict(config),
        data=data.summary,
        bytes_per_token=data.bytes_per_token,
        parameters=[dataclasses.asdict(count) for count in plan.counts],
    )
    return Run(config, device, compute_dtype, data, heldout, plan, folder, history)


def prepare_folder(config: TrainingConfig) -> Path:
    """Creates the checkpoint folder. Raises UserError if it is taken or cannot be written."""
    folder = Path(config.checkpoint_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--checkpoint-dir {folder} is not writable ({error.strerror}); choose another folder") from error
    taken = [name for name in (HISTORY_NAME, *MODEL_NAMES.values()) if (folder / name).exists()]
    if taken and not config.overwrite:
        raise UserError(f"{folder} holds a run already ({', '.join(taken)}); give another --checkpoint-dir, or --overwrite to replace it")
    for name in taken:
        os.unlink(folder / name)
    return folder


def git_commit() -> str:
    """The commit of this code; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
