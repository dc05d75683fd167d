"""What a run computes with, and how much memory it may take there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from training import torchrun

GB = 1e9
# What macOS and its window server keep for themselves with nothing else open; assumed, not measured.
SYSTEM_BYTES = 3 * GB


@dataclass(frozen=True)
class Machine:
    """What a run computes with: as many devices as ranks, each with `available` bytes.

    A `compute_dtype` of None is fp32. A Mac has bytes `beyond`: they are the machine's, and no longer of the working set
    that the system recommends for its GPU. A run that needs them works, and is slower, as memory moves in and out.
    """

    device: torch.device
    compute_dtype: torch.dtype | None = None
    n_ranks: int = 1
    available: float = math.inf
    beyond: float = 0.0

    @classmethod
    def now(cls, device: torch.device, compute_dtype: torch.dtype | None, n_ranks: int = 1) -> Machine:
        """With what is free at this moment; ranks of one machine share its CPU's memory."""
        n_sharing = torchrun.planned_count_here() if device.type == "cpu" else 1
        return cls(device, compute_dtype, n_ranks, available_bytes(device) / n_sharing, bytes_beyond(device))

    @property
    def most(self) -> float:
        """Bytes beyond which a run cannot be."""
        return self.available + self.beyond

    @property
    def in_words(self) -> str:
        if self.beyond:
            return f"this Mac's GPU has {self.available / GB:.1f} GB at full speed, {self.most / GB:.1f} GB at most"
        return f"this device has {self.available / GB:.1f} GB free"


def available_bytes(device: torch.device) -> float:
    """Memory that a process may take on the device now; of a Mac what its GPU is meant to use at once."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [psutil.virtual_memory().available]
    for limit in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def bytes_beyond(device: torch.device) -> float:
    """What a Mac has for its GPU besides the recommended working set: all but what its system needs.

    torch refuses nothing before: its limit, the high watermark, is 1.7 times the working set, which is two thirds of
    the machine or more. What other programs hold is not counted, as the system moves it away.
    """
    if device.type != "mps":
        return 0.0
    return max(0.0, psutil.virtual_memory().total - SYSTEM_BYTES - torch.mps.recommended_max_memory())
