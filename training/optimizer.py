"""AdamW (Loshchilov & Hutter 2019) with weight decay on matrices alone."""

from __future__ import annotations

import torch

from models import Transformer


def build_optimizer(model: Transformer, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all parameters, in two groups: matrices with decay; biases, norms, routers without.

    The learning rate is set before each step, from the schedule.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        # By name: the biases of stacked experts have two dimensions.
        is_matrix = name.endswith("weight") and "norm" not in name and "router" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
