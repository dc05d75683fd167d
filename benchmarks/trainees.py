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
from models import Transformer
from training import step
from training.device import check_model
from training.flops import step_flops
from training.optimizer import build_optimizers

RATE = 1e-3
# |difference| / |expected| of the peer's loss and of its gradients. Autocast rounds in other places than we do.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-4, 3e-2)}
NEOX_NAMES = {
    "embedding.": "gpt_neox.embed_in.", "blocks.": "gpt_neox.layers.", "final_norm.": "gpt_neox.final_layer_norm.",
    "attention_norm.": "input_layernorm.", "mlp_norm.": "post_attention_layernorm.",
    "attention.qkv.": "attention.query_key_value.", "attention.out.": "attention.dense.",
    "mlp.up.": "mlp.dense_h_to_4h.", "mlp.down.": "mlp.dense_4h_to_h.",
}  # fmt: skip


@dataclass
class Trainee:
    """A call is one whole step on one batch: forward, loss, backward, clip, optimizers.

    `backward()` leaves clipped gradients and returns the loss; `final_norm` ends the forward pass.
    """

    config: ModelConfig
    backward: Callable[[], Tensor]
    optimizers: list[torch.optim.Optimizer]
    final_norm: nn.Module

    def __call__(self) -> Tensor:
        loss = self.backward()
        step.update(self.optimizers, RATE)
        return loss


def our_model(config: ModelConfig, dtype: torch.dtype, device: torch.device = torch.device("cpu")) -> Transformer:
    """A new model of ours, made on the device, that trains in `dtype`; its weights are fp32, as in training."""
    generator = torch.Generator(device).manual_seed(0)
    return training_in(Transformer.empty(config, device).initialise(generator), dtype)


def lively_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """The same with larger weights, on the CPU: in a new model other attention would go unnoticed."""
    return training_in(check_model(config), dtype)


def training_in(model: Transformer, dtype: torch.dtype) -> Transformer:
    model.compute_dtype = None if dtype == torch.float32 else dtype
    return model


def ours(model: Transformer, tokens_BT: Tensor, settings: TrainingConfig, plain_adamw: bool = False) -> Trainee:
    """As training steps; with `plain_adamw`, AdamW moves everything in place of Muon and AdamW.

    Args:
        tokens_BT: int64, one longer than the context.
    """
    optimizers = [adamw(model)] if plain_adamw else build_optimizers(model, settings.weight_decay)
    return Trainee(model.config, lambda: step.backward(model, tokens_BT, settings)[0], optimizers, model.final_norm)


def neox(model: Transformer, dtype: torch.dtype) -> nn.Module:
    """`transformers`' GPT-NeoX with the geometry and a copy of the weights of a dense model of ours.

    fp32 weights and sdpa attention, its default; in bf16 it is trained under autocast, as people train it.

    Raises:
        UserError: `transformers` is not installed.
    """
    try:
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    except ImportError as error:
        raise no_peers(error) from error
    config = model.config
    peer = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, intermediate_size=config.d_hidden, hidden_act="gelu",
            max_position_embeddings=config.context_length, layer_norm_eps=config.norm_eps, use_parallel_residual=False,
            tie_word_embeddings=True, attn_implementation="sdpa",
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base, "partial_rotary_factor": 1.0},
        )
    ).to(model.device).train()  # fmt: skip
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            theirs[neox_name(name)].copy_(parameter)
    return peer


def neox_name(name: str) -> str:
    """Their name of a parameter of ours."""
    for ours_, theirs in NEOX_NAMES.items():
        name = name.replace(ours_, theirs)
    return name


def gpt_neox(
    peer: nn.Module, model: Transformer, tokens_BT: Tensor, settings: TrainingConfig, plain_adamw: bool = False
) -> Trainee:
    """`peer`, made by `neox` of `model`, with the optimizers that `ours` would have."""
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:].contiguous()
    dtype = model.compute_dtype

    def backward() -> Tensor:
        with torch.autocast(tokens_BT.device.type, dtype) if dtype else nullcontext():
            loss = peer(inputs_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.grad_clip)
        return loss.detach()

    optimizers = [adamw(peer)] if plain_adamw else build_optimizers(renamed(peer, model), settings.weight_decay)
    return Trainee(model.config, backward, optimizers, peer.gpt_neox.final_layer_norm)


def require_same_step(model: Transformer, trainee: Trainee, peer: nn.Module, peer_trainee: Trainee) -> None:
    """Both models' first backward passes, whose gradients are dropped again.

    Raises:
        AssertionError: the losses or the gradients of a matrix differ: the peer computes something else.
    """
    loss_tolerance, gradient_tolerance = TOLERANCE[model.compute_dtype or torch.float32]
    ours_, theirs = trainee.backward().item(), peer_trainee.backward().item()
    if not abs(ours_ - theirs) <= loss_tolerance * abs(ours_):
        raise AssertionError(f"the first losses differ: ours {ours_:.6f}, the peer's {theirs:.6f}")
    peer_parameters = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            expected, got = parameter.grad, peer_parameters[neox_name(name)].grad
            error = ((got - expected).norm() / expected.norm()).item()
            if not error <= gradient_tolerance:
                raise AssertionError(f"the gradients of {name} differ by {error:.1e} of their size")
    model.zero_grad(set_to_none=True)
    peer.zero_grad(set_to_none=True)


def renamed(peer: nn.Module, model: Transformer) -> SimpleNamespace:
    """What `build_optimizers` asks of a model: the peer's parameters under our names."""
    theirs = dict(peer.named_parameters())
    parameters = [(name, theirs[neox_name(name)]) for name, _ in model.named_parameters()]
    return SimpleNamespace(
        config=model.config, compute_dtype=model.compute_dtype, embedding=model.embedding,
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
    gradients together with the loss. The backward pass is that of the blocks, with clipping.
    """
    marks = []

    def mark() -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    def after_forward(_module, _inputs, hidden: Tensor) -> None:
        mark()
        hidden.register_hook(lambda _gradient: mark())

    hook = trainee.final_norm.register_forward_hook(after_forward)
    mark()
    trainee.backward()
    mark()
    step.update(trainee.optimizers, RATE)
    mark()
    hook.remove()
    names = ("forward", "loss head", "backward", "optimizer")
    return {name: after - before for name, (before, after) in zip(names, pairwise(marks), strict=True)}
