"""A dropless mixture of experts with stacked weights.

A router gives every token a probability for each expert; its `top_k` best experts compute it,
and their outputs are added with gates that are a softmax over the chosen logits. The gates sum
to one, which is what makes upcycling exact: equal experts give every token the dense output.

Here are the router and its losses; how the chosen experts are computed is in models/experts.py.

Shape letters: B batch, T time, N tokens (B × T), k experts of a token, E experts, D d_model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import ModelConfig
from models.experts import apply_experts, assign_slots
from models.layers import MLP
from models.lean import InTwoParts
from models.products import linear


class Routing(NamedTuple):
    """What one MoE layer says of one batch; probabilities and losses are differentiable and fp32.

    Counts and means, and no loss made of both: over several ranks each adds up by itself (training/ranks.py).
    """

    slots_per_expert_E: Tensor  # int64, sums to tokens × top_k
    probability_E: Tensor  # the mean of the full softmax
    z_loss: Tensor  # mean(logsumexp²), a scalar (Zoph et al. 2022, eq. 5)

    @property
    def load_balancing_loss(self) -> Tensor:
        """E · Σₑ fₑ Pₑ, with fₑ the share of slots (Fedus et al. 2021, eq. 4): 1 when all experts are used alike,
        up to n_experts."""
        share_E = self.slots_per_expert_E / self.slots_per_expert_E.sum()
        return len(share_E) * (share_E * self.probability_E).sum()


class StackedLinear(InTwoParts):
    """The parameters of one linear layer per expert: stacks of those of `linear`, (E, …, out, in) and (E, out)."""

    def __init__(self, n_experts: int, linear: nn.Linear):
        super().__init__()
        for name, parameter in (("weight", linear.weight), ("bias", linear.bias)):
            stack = None if parameter is None else nn.Parameter(torch.empty(n_experts, *parameter.shape))
            self.register_parameter(name, stack)


class Router(nn.Linear):
    """Logits over experts, (N, D) → (N, E), in fp32 whatever the precision around it.

    A rounded logit sends a token to another expert: this is the one place where bf16 shows.
    """

    def __init__(self, d_model: int, n_experts: int):
        super().__init__(d_model, n_experts, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return linear(x_ND.to(exact), self.weight.to(exact))


class MoE(nn.Module):
    """`n_experts` MLPs of which each token uses `top_k`; (B, T, D) → (B, T, D) and its `Routing`.

    With `keeps_hidden = False` hidden units and logits are not kept for the backward pass but computed again, from the
    same tokens for the same experts.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k
        self.n_experts = config.n_experts
        self.keeps_hidden = True
        self.router = Router(config.d_model, config.n_experts)
        with torch.device("meta"):
            expert = MLP(config)
        self.is_gated = expert.is_gated
        self.up = StackedLinear(config.n_experts, expert.up)
        self.down = StackedLinear(config.n_experts, expert.down)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        if self.keeps_hidden or not torch.is_grad_enabled():
            logits_NE = self.router(x_ND)
        else:  # what it keeps of bf16 tokens is an fp32 copy of them
            logits_NE = checkpoint(self.router, x_ND, use_reentrant=False, preserve_rng_state=False)
        chosen_logits_Nk, expert_Nk = logits_NE.topk(self.top_k, dim=-1)
        slots = assign_slots(expert_Nk, self.n_experts, x_ND.dtype)
        up, down = (self.up.weight, self.up.bias), (self.down.weight, self.down.bias)
        lows = self.up.low, self.down.low
        y_ND = apply_experts(x_ND, chosen_logits_Nk, slots, up, down, self.keeps_hidden, self.is_gated, lows)
        return y_ND.view_as(x_BTD), self.routing(logits_NE, slots.slots_per_expert_E)

    def routing(self, logits_NE: Tensor, slots_per_expert_E: Tensor) -> Routing:
        return Routing(
            slots_per_expert_E,
            probability_E=logits_NE.softmax(-1).mean(0),
            z_loss=logits_NE.logsumexp(-1).square().mean(),
        )
