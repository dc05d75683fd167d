"""What besides settings and stories can make two runs differ: versions, machine, precision."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from pathlib import Path

import numpy
import torch

from config import ModelConfig
from training.plan import Plan


def facts(plan: Plan, heldout_batch: int, outlook: str, start_model: ModelConfig | None) -> dict:
    """By name, for the history and the saved state.

    Args:
        heldout_batch: the batch size with which the run was started: eval_batches of so many windows are held-out.
        outlook: whether growth was expected to pay when the run was started.
        start_model: the geometry of the model that was there.
    """
    machine = plan.machine
    device = machine.device
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "commit": git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "precision": "bf16" if machine.compute_dtype else "fp32",
        "memory": "lean" if plan.is_lean else "full",
        "heldout_batch": heldout_batch,
        **({"outlook": outlook} if outlook else {}),
        **({"start_model": dataclasses.asdict(start_model)} if start_model else {}),
        **({"ranks": machine.n_ranks} if machine.n_ranks > 1 else {}),
    }


def git_commit() -> str:
    """The commit of this code, and "-dirty" where it has been changed since; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
