"""One step of training, and what has to be set before the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from config import TrainingConfig
from models import Routing, Transformer, next_token_loss, router_loss
from models.shards import whole
from training.bad_steps import is_sound
from training.optimizer import build_optimizers, set_learning_rate, take_if
from training.ranks import team


class LayerFigures(NamedTuple):
    """What the router of one layer did with a whole batch; the losses are scalars without a gradient."""

    slots_per_expert_E: Tensor  # int64
    load_balancing_loss: Tensor
    z_loss: Tensor


def prepare_training(
    model: Transformer, config: TrainingConfig, compute_dtype: torch.dtype | None, is_lean: bool
) -> list[torch.optim.Optimizer]:
    """Sets how the model computes, and returns its optimizers.

    Lean memory keeps no hidden units of experts, no gradients of matrices and momentum in bf16.
    """
    model.compute_dtype = compute_dtype
    model.keep_hidden(not is_lean)
    return build_optimizers(model, config.weight_decay, config.grad_clip if is_lean else None)


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    tokens_BT: Tensor,
    rate: float,
    config: TrainingConfig,
) -> tuple[Tensor, list[LayerFigures], Tensor]:
    """Moves the model by one batch, in `config.accumulate` parts whose gradients add up; see training/bad_steps.py.

    Args:
        tokens_BT: this process's rows of the batch. Where there are several, FSDP averages their gradients.
    Returns:
        The language-model loss in nats a token, what the routers did, and the norm of the gradient before clipping,
        all of the whole batch: tensors on the device, which nobody has waited for.
    """
    muon, adamw = optimizers
    set_learning_rate(optimizers, rate)

    losses, routings = [], []
    for part_BT in tokens_BT.chunk(config.accumulate):
        share = len(part_BT) / len(tokens_BT)
        # Forward: the language-model loss, and how the routers have shared out the tokens.
        own_loss, own_routing = next_token_loss(model, part_BT)
        part_loss, routing = team().over_all(own_loss, own_routing)
        # Backward. With lean memory matrices move meanwhile, each by its own gradient, if the loss is a number.
        take_if(torch.isfinite(part_loss), optimizers)
        total = own_loss + router_loss(routing, config.balance_weight, config.z_weight)
        (total * share).backward()
        losses.append(part_loss * share)
        routings.append(routing)
    loss = torch.stack(losses).sum()

    # Clip, by the norm of the whole gradient; and decide, on the device, whether this step is to be trusted.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    grad_norm = whole(get_total_norm(gradients + muon.norms_in_backward))
    clip_grads_with_norm_(model.parameters(), config.grad_clip, grad_norm)
    take_if(is_sound(loss, grad_norm, config.grad_clip), optimizers)

    # Move the weights, Muon matrices and AdamW the rest, and forget the gradients.
    muon.end_step(grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss, merged(routings), grad_norm


def merged(parts: list[list[Routing]]) -> list[LayerFigures]:
    """The figures of each layer over all parts of a batch."""
    return [
        LayerFigures(
            torch.stack([routing.slots_per_expert_E for routing in layer]).sum(0),
            torch.stack([routing.load_balancing_loss.detach() for routing in layer]).mean(),
            torch.stack([routing.z_loss.detach() for routing in layer]).mean(),
        )
        for layer in zip(*parts)
    ]
