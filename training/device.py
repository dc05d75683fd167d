"""Which device, which precision, and a look at whether the device computes what it should."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import torch

from config import ModelConfig, TrainingConfig, UserError
from models import Transformer, build_dense_model, next_token_loss
from models.transformer import INIT_STD

# A lower precision has to be this much faster to be taken: a run should not depend on a close race.
WORTHWHILE_SPEEDUP = 1.15
# Agreement with the CPU's fp32, as |difference| / |expected| of logits and gradients. Rounding is
# some 1e-6 in fp32 and 1e-2 in bf16; a kernel that computes something else is of the order of 1.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


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


def require_fixed_mps(torch_version: str) -> None:
    """Raises UserError below torch 2.13, whose bf16 causal attention on MPS leaked future tokens."""
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if (major, minor) < (2, 13):
        raise UserError(
            f"on a Mac torch 2.13 or newer is required, this is {torch_version}: run pip install torch==2.13.0"
        )


def choose_precision(device: torch.device, config: TrainingConfig, say=print) -> torch.dtype | None:
    """Checks the device in about a second, and returns the dtype to compute in (None for fp32).

    Each precision has to keep the future out of the past and to agree with the CPU's fp32;
    `precision="auto"` then takes bf16 where it is worth it by timing.

    Raises:
        UserError: the device fails in fp32, or in the precision that was asked for.
    """
    wanted = [torch.float32] if config.precision == "fp32" else [torch.float32, torch.bfloat16]
    faults = {dtype: find_fault(device, dtype) for dtype in wanted}
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
    speedup = seconds_per_step(device, None, config) / seconds_per_step(device, torch.bfloat16, config)
    take_bf16 = speedup >= WORTHWHILE_SPEEDUP
    chosen = "bf16" if take_bf16 else "fp32"
    say(f"{checked} ({device}); precision {chosen}: bf16 runs at {speedup:.2f}× the speed of fp32")
    return torch.bfloat16 if take_bf16 else None


def find_fault(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with a small model on this device in this precision; empty if nothing is."""
    # All experts serve every token: otherwise rounding alone could send one to another expert.
    geometry = ModelConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=2, n_experts=4, top_k=4, context_length=64)
    llama = dataclasses.replace(geometry, architecture="llama", queries_per_kv=2)
    tokens = torch.randint(512, (2, 65), generator=torch.Generator().manual_seed(0))
    try:
        for config in (geometry.upcycled(n_experts=0, top_k=4), geometry, llama):
            expected = logits_and_gradients(check_model(config), tokens)
            model = check_model(config).to(device)
            model.compute_dtype = None if dtype == torch.float32 else dtype
            for name, value in logits_and_gradients(model, tokens.to(device)).items():
                error = ((value.cpu() - expected[name]).norm() / expected[name].norm()).item()
                if not error <= TOLERANCE[dtype]:
                    return f"{name} differ from the CPU's by {error:.1e} of their size"
            if leak := future_leak(model, tokens[:, :-1].to(device)):
                return f"changing a future token moves past logits by {leak:.1e}"
    except (RuntimeError, TypeError) as error:  # MPS refuses a dtype with a TypeError
        return f"it cannot be computed ({str(error).splitlines()[0]})"
    return ""


@torch.no_grad()
def check_model(config: ModelConfig) -> Transformer:
    """A random model in which every block matters: at the usual initialisation none does."""
    model = Transformer.empty(config).initialise(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.startswith("blocks") and parameter.ndim > 1:
            parameter.mul_(0.5 / INIT_STD / parameter.shape[-1] ** 0.5)
    return model


def logits_and_gradients(model: Transformer, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits, and the gradient of the language-model loss for each kind of matrix."""
    logits = model(tokens_BT[:, :-1]).detach().float()
    next_token_loss(model, tokens_BT)[0].backward()
    block = model.blocks[0]
    matrices = {"embedding": model.embedding, "qkv": block.attention.qkv, "up": block.mlp.up, "down": block.mlp.down}
    return {"logits": logits} | {f"gradients of {name}": module.weight.grad for name, module in matrices.items()}


@torch.no_grad()
def future_leak(model: Transformer, tokens_BT: torch.Tensor) -> float:
    """Largest change of logits before position T/2 when the token there changes; 0.0 within rounding."""
    half = tokens_BT.shape[1] // 2
    changed = tokens_BT.clone()
    changed[:, half] = (changed[:, half] + 1) % model.config.vocab_size
    before, after = (model(tokens)[:, :half].float() for tokens in (tokens_BT, changed))
    difference = (before - after).abs().max().item()
    # A token's row stands elsewhere among its expert's rows once others change: rounding, no leak.
    rounding = 1e-4 if model.compute_dtype is None else 2e-2
    return difference if difference > rounding * before.abs().max().item() else 0.0


def used_bytes(device: torch.device) -> int | None:
    """The most that was allocated on CUDA so far; on MPS what is now; else what this process has in memory now.

    None where the system does not say. It waits for no device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else None


def seconds_per_step(device: torch.device, dtype: torch.dtype | None, config: TrainingConfig) -> float:
    """Best of three forward and backward passes of one block at the run's width."""
    n_tokens = min(256, config.context_length)
    geometry = dataclasses.replace(config.dense_geometry(512), n_layers=1, context_length=n_tokens)
    model = build_dense_model(geometry).to(device)
    model.compute_dtype = dtype
    tokens = torch.randint(512, (2, n_tokens + 1), generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        next_token_loss(model, tokens)[0].backward()
        model.embedding.weight.grad.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
