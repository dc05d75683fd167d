"""The training loss: next-token cross-entropy and what the routers add to it.

Shape letters: B batch, T time, N tokens (batch × time), D d_model, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.moe import Routing
from models.transformer import Transformer

# Logits are computed for so many tokens at once: beyond it they are recomputed in the backward
# pass. It bounds memory, and on MPS a product with 50 k outputs is wrong from 9 × 1024 rows on.
TOKENS_PER_CHUNK = 4096


def next_token_loss(model: Transformer, tokens_BT: Tensor) -> tuple[Tensor, list[Routing]]:
    """Mean cross-entropy in nats of predicting tokens[:, 1:] from tokens[:, :-1], and the routing.

    Args:
        tokens_BT: int64, one longer than the context that is predicted from.
    Returns:
        An fp32 scalar (fp64 for an fp64 model), and the `Routing` of every MoE layer.
    """
    hidden_BTD, routings = model.hidden(tokens_BT[:, :-1])
    hidden_ND, target_N = hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten()

    def summed_loss(hidden_ND: Tensor, target_N: Tensor) -> Tensor:
        logits_NV = model.unembed(hidden_ND)
        exact = torch.promote_types(logits_NV.dtype, torch.float32)
        return F.cross_entropy(logits_NV.to(exact), target_N, reduction="sum")

    if len(target_N) <= TOKENS_PER_CHUNK:
        total = summed_loss(hidden_ND, target_N)
    else:
        total = sum(
            checkpoint(summed_loss, hidden, target, use_reentrant=False)
            for hidden, target in zip(hidden_ND.split(TOKENS_PER_CHUNK), target_N.split(TOKENS_PER_CHUNK))
        )
    return total / len(target_N), routings


def router_loss(routings: list[Routing], balance_weight: float, z_weight: float) -> Tensor | float:
    """The routers' share of the training loss, averaged over layers; 0.0 for a dense model."""
    if not routings:
        return 0.0
    balance = torch.stack([routing.load_balancing_loss for routing in routings]).mean()
    z = torch.stack([routing.z_loss for routing in routings]).mean()
    return balance_weight * balance + z_weight * z
