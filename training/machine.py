"""What a run computes with, and how much memory it may take there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from training import torchrun

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What a run computes with: as many devices as ranks, each with `available` bytes.

    A `compute_dtype` of None is fp32.
    """

    device: torch.device
    compute_dtype: torch.dtype | None = None
    n_ranks: int = 1
    available: float = math.inf

    @classmethod
    def now(cls, device: torch.device, compute_dtype: torch.dtype | None, n_ranks: int = 1) -> Machine:
        """With what is free at this moment; ranks of one machine share its CPU's memory."""
        n_sharing = torchrun.planned_count_here() if device.type == "cpu" else 1
        return cls(device, compute_dtype, n_ranks, available_bytes(device) / n_sharing)


def available_bytes(device: torch.device) -> float:
    """Memory that a process may take on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [psutil.virtual_memory().available]
    for limit in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
            limits.append(int(text))
    return min(limits)
