"""Models with their optimizers, one training step a call: ours, and `transformers`' GPT-NeoX on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.measuring import synchronise
from benchmarks.moe_peers import no_peers
from config import ModelConfig, TrainingConfig
from hugging_face.gpt_neox import neox_config, neox_name
from models import Transformer, next_token_loss
from training.flops import step_flops
from training.muon import Muon
from training.optimizer import build_optimizers, set_learning_rate
from training.step import prepare_training, train_step

RATE = 1e-3
# |difference| / |expected| of the peer's loss and of its gradients. Autocast rounds in other places than we do.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-4, 3e-2)}


@dataclass(frozen=True)
class Trainee:
    """A call is one whole step on one batch: forward, loss, backward, clipping, optimizers.

    `final_norm` ends the forward pass; the optimizers step after clipping, in their order.
    """

    config: ModelConfig
    step: Callable[[], object]
    optimizers: list[torch.optim.Optimizer]
    final_norm: nn.Module

    def __call__(self) -> None:
        self.step()


def our_model(config: ModelConfig, device: torch.device = torch.device("cpu")) -> Transformer:
    """A new model of ours, made on the device; its weights are fp32, as in training."""
    return Transformer.empty(config, device).initialise(torch.Generator(device).manual_seed(0))


def ours(
    model: Transformer,
    tokens_BT: Tensor,
    settings: TrainingConfig,
    dtype: torch.dtype,
    is_lean: bool = False,
    plain_adamw: bool = False,
) -> Trainee:
    """As training steps, computing in `dtype`; with `plain_adamw`, AdamW moves everything in place of Muon and AdamW.

    Args:
        tokens_BT: int64, one longer than the context.
    """
    optimizers = prepare_training(model, settings, compute_dtype(dtype), is_lean)
    if plain_adamw:
        optimizers = [Muon([{"params": [], "share": 1.0}], 0.0), adamw(model)]
    return Trainee(
        model.config, lambda: train_step(model, optimizers, tokens_BT, RATE, settings), optimizers, model.final_norm
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """As models name it: None is that of the weights."""
    return None if dtype == torch.float32 else dtype


def neox(model: Transformer) -> nn.Module:
    """`transformers`' GPT-NeoX with the geometry and a copy of the weights of a dense, tied model of ours.

    fp32 weights and sdpa attention, its default.

    Raises:
        UserError: `transformers` is not installed.
    """
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError as error:
        raise no_peers(error) from error
    peer = GPTNeoXForCausalLM(GPTNeoXConfig(**neox_config(model.config), attn_implementation="sdpa"))
    peer = peer.to(model.device).train()
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            theirs[neox_name(name)].copy_(parameter)
    return peer


def neox_loss(peer: nn.Module, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy in nats; lower precision is autocast's, as people train it."""
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:].contiguous()
    with torch.autocast(tokens_BT.device.type, dtype) if compute_dtype(dtype) else nullcontext():
        return peer(inputs_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss


def gpt_neox(
    peer: nn.Module,
    model: Transformer,
    tokens_BT: Tensor,
    settings: TrainingConfig,
    dtype: torch.dtype,
    plain_adamw: bool = False,
) -> Trainee:
    """`peer`, made by `neox` of `model`, with the optimizers that `ours` would have."""
    theirs = renamed(peer, model, dtype)
    optimizers = [adamw(peer)] if plain_adamw else build_optimizers(theirs, settings.weight_decay)

    def step() -> None:
        set_learning_rate(optimizers, RATE)
        neox_loss(peer, tokens_BT, dtype).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Trainee(model.config, step, optimizers, peer.gpt_neox.final_layer_norm)


def require_same_gradients(model: Transformer, peer: nn.Module, tokens_BT: Tensor, dtype: torch.dtype) -> None:
    """Both models' losses and gradients on one batch; the gradients are dropped again.

    Raises:
        AssertionError: the losses or the gradients of a matrix differ: the peer computes something else.
    """
    loss_tolerance, gradient_tolerance = TOLERANCE[dtype]
    model.compute_dtype = compute_dtype(dtype)
    loss, peer_loss = next_token_loss(model, tokens_BT)[0], neox_loss(peer, tokens_BT, dtype)
    if not abs(loss.item() - peer_loss.item()) <= loss_tolerance * abs(loss.item()):
        raise AssertionError(f"the losses differ: ours {loss.item():.6f}, the peer's {peer_loss.item():.6f}")
    loss.backward()
    peer_loss.backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            error = ((theirs[neox_name(name)].grad - parameter.grad).norm() / parameter.grad.norm()).item()
            if not error <= gradient_tolerance:
                raise AssertionError(f"the gradients of {name} differ by {error:.1e} of their size")
    model.zero_grad(set_to_none=True)
    peer.zero_grad(set_to_none=True)


def renamed(peer: nn.Module, model: Transformer, dtype: torch.dtype) -> SimpleNamespace:
    """What `build_optimizers` asks of a model: the peer's parameters under our names."""
    theirs = dict(peer.named_parameters())
    parameters = [(name, theirs[neox_name(name)]) for name, _ in model.named_parameters()]
    return SimpleNamespace(
        config=model.config, compute_dtype=compute_dtype(dtype), embedding=model.embedding,
        named_parameters=lambda: iter(parameters),
    )  # fmt: skip


def adamw(model: nn.Module) -> torch.optim.AdamW:
    groups = [{"params": list(model.parameters()), "share": 1.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def network_flops(config: ModelConfig, batch_size: int) -> float:
    """FLOPs of forward and backward alone, by `training.flops`: what Muon adds does not depend on the batch."""
    return step_flops(config, 2 * batch_size) - step_flops(config, batch_size)


def parts_of_step(trainee: Trainee, device: torch.device) -> dict[str, float]:
    """Seconds of the parts of one step.

    The loss head is what lies between the last norm's output and the gradient of it: ours computes its
    gradients together with the loss. The backward pass is that of the blocks, with clipping; with lean
    memory Muon is part of it.
    """
    marks = []

    def mark(*_) -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    def after_forward(_module, _inputs, hidden: Tensor) -> None:
        mark()
        hidden.register_hook(mark)

    hooks = [
        trainee.final_norm.register_forward_hook(after_forward),
        trainee.optimizers[0].register_step_pre_hook(mark),
    ]
    mark()
    trainee.step()
    mark()
    for hook in hooks:
        hook.remove()
    names = ("forward", "loss head", "backward", "optimizer")
    return {name: after - before for name, (before, after) in zip(names, pairwise(marks), strict=True)}
