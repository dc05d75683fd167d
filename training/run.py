"""What a run carries through its three phases."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig, UserError
from data import StoryData, load_data
from training.device import choose_precision
from training.flops import step_flops
from training.history import History
from training.plan import Plan, make_plan, require_memory

HISTORY_NAME = "training_history.jsonl"
PICTURE_NAME = "training_curves.png"
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
    flops_done: float = 0.0  # counted, trials of growth included
    losses: dict[str, float] = field(default_factory=dict)  # what the closing summary prints

    def model_path(self, phase: int) -> Path:
        return self.folder / MODEL_NAMES[phase]

    def count_step(self, model: ModelConfig) -> None:
        self.steps_done += 1
        self.flops_done += step_flops(model, self.config.batch_size)

    @property
    def tokens_seen(self) -> int:
        return self.steps_done * self.config.batch_size * self.config.context_length


def start_run(config: TrainingConfig, device: torch.device) -> Run:
    """Everything that can fail before training does, in the order of what it costs to find out.

    Raises:
        UserError: the folder is taken or not writable, the data cannot be used, the device
            computes wrongly, or the largest phase will not fit in memory.
    """
    folder = Path(config.checkpoint_dir)
    earlier_run = find_earlier_run(folder, config.overwrite)
    compute_dtype = choose_precision(device, config)
    data = load_data(config)
    heldout = data.heldout_batches()
    plan = make_plan(config, data.tokenizer.n_vocab, device, compute_dtype)
    print(plan.table())
    require_memory(plan, config.ignore_memory_plan)
    # Only now, when nothing else can be refused, does an earlier run make room for this one.
    for path in earlier_run:
        path.unlink()
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


def find_earlier_run(folder: Path, overwrite: bool) -> list[Path]:
    """Creates the checkpoint folder, and returns the files of a run that it holds already.

    Raises:
        UserError: there are some and `overwrite` is not set, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--checkpoint-dir {folder} is not writable ({error.strerror}); choose another folder"
        ) from error
    names = (HISTORY_NAME, *MODEL_NAMES.values(), PICTURE_NAME)
    taken = [folder / name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        raise UserError(
            f"{folder} holds a run already ({', '.join(path.name for path in taken)}); "
            f"give another --checkpoint-dir, or --overwrite to replace it"
        )
    return taken


def git_commit() -> str:
    """The commit of this code; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
