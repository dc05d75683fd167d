"""One step of training."""

from __future__ import annotations

import torch
from torch import Tensor

from config import TrainingConfig
from models import Routing, Transformer, next_token_loss, router_loss
from training.optimizer import set_learning_rate


def backward(model: Transformer, tokens_BT: Tensor, config: TrainingConfig) -> tuple[Tensor, list[Routing], Tensor]:
    """Gradients of one batch, clipped: the language-model loss, the routing, and the norm before clipping."""
    loss, routings = next_token_loss(model, tokens_BT)
    (loss + router_loss(routings, config.balance_weight, config.z_weight)).backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    return loss, routings, grad_norm


def update(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Moves the parameters and frees their gradients."""
    set_learning_rate(optimizers, rate)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
