"""Which device, which precision, and a look at whether the device computes what it should."""

from __future__ import annotations

import dataclasses

import psutil
import torch

from config import ModelConfig, TrainingConfig, UserError
from training.duration import seconds_per_pass
from training.self_check import find_fault

# A lower precision has to be this much faster to be taken: a run should not depend on a close race.
WORTHWHILE_SPEEDUP = 1.15


def pick_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu.

    Raises:
        UserError: the device that was asked for is not there, or torch is too old for it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(
            f"--device {name}: this machine or this torch ({torch.__version__}) has no {name}; available: {there}"
        )
    if name == "mps":
        require_fixed_mps(torch.__version__)
    return torch.device(name)


def to_device(tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The batch on its device; CUDA goes on with the step before meanwhile, as nobody waits for the copy.

    Nowhere else: on MPS a copy that nobody waits for may read memory that has been freed, and tokens out of range
    raise nothing there (pytorch #189690, #144824).
    """
    if device.type == "cuda":
        return tokens.pin_memory().to(device, non_blocking=True)
    return tokens.to(device)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def require_fixed_mps(torch_version: str) -> None:
    """Raises UserError below torch 2.13, whose bf16 causal attention on MPS leaked future tokens."""
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if (major, minor) < (2, 13):
        raise UserError(
            f"on a Mac torch 2.13 or newer is required, this is {torch_version}: run pip install torch==2.13.0"
        )


def choose_precision(
    device: torch.device, config: TrainingConfig, largest: ModelConfig, say=print
) -> torch.dtype | None:
    """Checks the device in some seconds, and returns the dtype to compute in (None for fp32).

    Each precision has to keep the future out of the past and to agree with the CPU's fp32, also in the shapes of
    this run; `precision="auto"` then takes bf16 where it is worth it by timing.

    Args:
        largest: the largest model of the run.
    Raises:
        UserError: the device fails in fp32, or in the precision that was asked for.
    """
    wanted = [torch.float32] if config.precision == "fp32" else [torch.float32, torch.bfloat16]
    n_tokens = -(-config.batch_size // config.accumulate) * config.context_length
    faults = {dtype: find_fault(device, dtype, largest, n_tokens) for dtype in wanted}
    if faults[torch.float32]:
        raise UserError(
            f"device self-check: on {device}, fp32, {faults[torch.float32]}; update torch, or give --device cpu"
        )
    checked = "Device self-check: past logits do not see the future, logits and gradients agree with the CPU's"
    if config.precision == "fp32":
        say(f"{checked} ({device}, fp32)")
        return None
    fault = faults[torch.bfloat16]
    if config.precision == "bf16":
        if fault:
            raise UserError(f"device self-check: on {device}, bf16, {fault}; give --precision fp32")
        say(f"{checked} ({device}, bf16)")
        return torch.bfloat16
    if fault:
        say(f"{checked} ({device}, fp32; bf16 is not used: {fault})")
        return None
    speedup = speedup_of_bf16(device, config)
    take_bf16 = speedup >= WORTHWHILE_SPEEDUP
    chosen = "bf16" if take_bf16 else "fp32"
    say(f"{checked} ({device}); precision {chosen}: bf16 runs at {speedup:.2f}× the speed of fp32")
    return torch.bfloat16 if take_bf16 else None


def speedup_of_bf16(device: torch.device, config: TrainingConfig) -> float:
    """How many times as fast as fp32 a block of the run's width passes in bf16."""
    block = dataclasses.replace(config.dense_geometry(512), n_layers=1, context_length=min(256, config.context_length))
    fp32, bf16 = (seconds_per_pass(block, 2, device, dtype) for dtype in (None, torch.bfloat16))
    return fp32 / bf16


def probable_precision(device: torch.device, config: TrainingConfig) -> torch.dtype | None:
    """What `choose_precision` will choose where the device computes rightly, which is not checked here."""
    is_bf16 = config.precision == "bf16"
    if config.precision == "auto":
        is_bf16 = speedup_of_bf16(device, config) >= WORTHWHILE_SPEEDUP
    return torch.bfloat16 if is_bf16 else None


def used_bytes(device: torch.device) -> int:
    """The most that was allocated on CUDA so far; on MPS what is now; else what this process has in memory now.

    It waits for no device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss
