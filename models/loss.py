"""The training loss: next-token cross-entropy and what the routers add to it.

Shape letters: B batch, T time, N tokens (batch × time), D d_model, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.moe import Routing
from models.products import product_into
from models.transformer import Transformer

# Of the output matrix's gradient what a chunk of tokens adds is made for so many ids at once: for all of them it would take
# as much memory as that gradient, and in bf16 half as much again.
IDS_AT_ONCE = 8192
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def tokens_per_chunk(device: torch.device, is_trained: bool = True) -> int:
    """Tokens whose logits exist at once.

    Each chunk holds its logits twice, at 50 k ids and in bf16 200 MB for 1,024 tokens, and where the output matrix is
    trained costs a pass over its gradient: there a large GPU wants more rows. A Mac has the memory of its CPU, and a product
    with 50 k outputs is wrong there from 9 × 1024 rows on (pytorch #122045).
    """
    return 4096 if device.type == "cuda" and is_trained else 1024


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softmax(hidden @ outputᵀ), without ever holding all logits.

    Chunk by chunk, it computes loss and gradients together in the forward pass: three matrix
    products, as many as the plain computation, and no logits kept for the backward pass.

    The softmax has the dtype of the logits, whose rounding is larger than its own; but near 1 bf16 knows only steps of
    0.004. So what a target's probability p lacks there is the sum of all others: 1 - p to as many digits as they have. A
    loss is at most 87 nats a token: -log of the smallest normal number.

    torch.nn.functional.linear_cross_entropy does the same from torch 2.13 on; there its bf16 loss
    on a CPU is wrong (9.19 for 10.86) and takes almost three times as long as the plain computation,
    so it is not used yet.
    """

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, output_VD: Tensor, target_N: Tensor) -> Tensor:
        """hidden (N, D) in the compute dtype, output matrix (V, D) in its own, target int64 (N,) → scalar."""
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        weight_VD = output_VD.to(hidden_ND.dtype)
        wants_d_hidden, wants_d_output, _ = ctx.needs_input_grad
        d_hidden_ND = torch.empty_like(hidden_ND) if wants_d_hidden else None
        d_output_VD = None
        total = hidden_ND.new_zeros((), dtype=exact)
        chunk = tokens_per_chunk(hidden_ND.device, wants_d_output)
        for start in range(0, len(target_N), chunk):
            rows = slice(start, start + chunk)
            hidden, target = hidden_ND[rows], target_N[rows]
            probability = F.linear(hidden, weight_VD).softmax(-1)
            position = torch.arange(len(target), device=target.device)
            of_target = probability[position, target]
            # In place, the probabilities become the gradient of the logits. scatter_ would copy all of them twice.
            probability[position, target] = 0
            of_others = probability.sum(-1)
            probability[position, target] = -of_others
            total += negative_log(of_target.to(exact), of_others.to(exact)).sum()
            if wants_d_hidden:
                product_into(d_hidden_ND[rows], probability, weight_VD)
            if wants_d_output:
                d_output_VD = torch.zeros_like(output_VD) if d_output_VD is None else d_output_VD
                for d_output, d_logits in zip(d_output_VD.split(IDS_AT_ONCE), probability.split(IDS_AT_ONCE, dim=1)):
                    d_output += (d_logits.T @ hidden).to(d_output.dtype)
                del d_logits
            del probability  # before the next chunk's are there
        ctx.save_for_backward(d_hidden_ND, d_output_VD)
        return total

    @staticmethod
    def backward(ctx, d_total: Tensor):
        d_hidden_ND, d_output_VD = ctx.saved_tensors
        return tuple(None if d is None else d.mul_(d_total) for d in (d_hidden_ND, d_output_VD)) + (None,)


def negative_log(of_target_N: Tensor, of_others_N: Tensor) -> Tensor:
    """-log p of probabilities p, (N,), from whichever of p and 1 - p is the smaller, and so has more digits."""
    from_target_N = of_target_N.clamp(min=SMALLEST_PROBABILITY).log()
    return -torch.where(of_target_N < 0.5, from_target_N, torch.log1p(-of_others_N))


def next_token_loss(model: Transformer, tokens_BT: Tensor) -> tuple[Tensor, list[Routing]]:
    """Mean cross-entropy in nats of predicting tokens[:, 1:] from tokens[:, :-1], and the routing.

    Args:
        tokens_BT: int64, one longer than the context that is predicted from.
    Returns:
        An fp32 scalar (fp64 for an fp64 model), and the `Routing` of every MoE layer.
    """
    hidden_BTD, routings = model.hidden(tokens_BT[:, :-1])
    target_N = tokens_BT[:, 1:].flatten()
    # An autograd function is not told of no_grad; without this, evaluation would compute gradients.
    output_VD = model.output_matrix if torch.is_grad_enabled() else model.output_matrix.detach()
    total = ChunkedCrossEntropy.apply(hidden_BTD.flatten(0, 1), output_VD, target_N)
    return total / len(target_N), routings


def router_loss(routings: list[Routing], balance_weight: float, z_weight: float) -> Tensor | float:
    """The routers' share of the training loss, averaged over layers; 0.0 for a dense model."""
    if not routings:
        return 0.0
    balance = torch.stack([routing.load_balancing_loss for routing in routings]).mean()
    z = torch.stack([routing.z_loss for routing in routings]).mean()
    return balance_weight * balance + z_weight * z
