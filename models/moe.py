"""A dropless mixture of experts with stacked weights.

A router gives every token a probability for each expert; its `top_k` best experts compute it,
and their outputs are added with gates that are a softmax over the chosen logits. The gates sum
to one, which is what makes upcycling exact: equal experts give every token the dense output.

Tokens are sorted by expert, each expert multiplies its run of rows (one grouped matrix product),
and the inverse permutation brings the rows home, where they are summed: no atomics, so the same
input gives the same output, bit by bit.

Shape letters: N tokens (batch × time), S slots (N × top_k), E experts, D d_model, F hidden units.
Stacked weights are (E, out, in).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig


class Routing(NamedTuple):
    """What one MoE layer says of one batch; both losses are differentiable fp32 scalars."""

    slots_per_expert_E: Tensor  # int64, sums to tokens × top_k
    load_balancing_loss: Tensor  # 1 when all experts are used alike, up to n_experts
    z_loss: Tensor


class StackedLinear(nn.Module):
    """One linear layer per expert: weight (E, out, in), bias (E, out)."""

    def __init__(self, n_experts: int, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(n_experts, d_out))

    def forward(self, x_SI: Tensor, is_expert_SE: Tensor, slots_per_expert_E: Tensor) -> Tensor:
        """Rows sorted by expert, (S, in) → (S, out); `is_expert_SE` is their one-hot expert."""
        weight_EOI, bias_EO = self.weight.to(x_SI.dtype), self.bias.to(x_SI.dtype)
        product = grouped_product if grouped_mm_serves(x_SI, weight_EOI) else looped_product
        y_SO = product(x_SI, weight_EOI, slots_per_expert_E)
        # A one-hot product in place of bias[expert]: the gradient of an index is a slow scatter.
        return torch.addmm(y_SO, is_expert_SE.to(x_SI.dtype), bias_EO)


class Router(nn.Linear):
    """Logits over experts, (N, D) → (N, E), in fp32 whatever the precision around it.

    A rounded logit sends a token to another expert: this is the one place where bf16 shows.
    """

    def __init__(self, d_model: int, n_experts: int):
        super().__init__(d_model, n_experts, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(exact), self.weight.to(exact))


class MoE(nn.Module):
    """`n_experts` MLPs of which each token uses `top_k`; (B, T, D) → (B, T, D) and its `Routing`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k = config.top_k
        self.n_experts = config.n_experts
        self.router = Router(config.d_model, config.n_experts)
        self.up = StackedLinear(config.n_experts, config.d_model, config.d_hidden)
        self.down = StackedLinear(config.n_experts, config.d_hidden, config.d_model)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        chosen_logits_Nk, expert_Nk = logits_NE.topk(self.top_k, dim=-1)
        gate_Nk = chosen_logits_Nk.softmax(-1)

        expert_S = expert_Nk.flatten()
        order_S = expert_S.argsort(stable=True)
        experts_E = torch.arange(self.n_experts, device=expert_S.device)
        is_expert_SE = expert_S[order_S, None] == experts_E
        slots_per_expert_E = is_expert_SE.sum(0)

        x_SD = x_ND.index_select(0, order_S // self.top_k)
        hidden_SF = F.gelu(self.up(x_SD, is_expert_SE, slots_per_expert_E))
        y_SD = self.down(hidden_SF, is_expert_SE, slots_per_expert_E)
        y_NkD = y_SD.index_select(0, order_S.argsort()).unflatten(0, (-1, self.top_k))
        y_ND = (y_NkD * gate_Nk.unsqueeze(-1).to(y_NkD.dtype)).sum(1)
        return y_ND.view_as(x_BTD), self.routing(logits_NE, slots_per_expert_E)

    def routing(self, logits_NE: Tensor, slots_per_expert_E: Tensor) -> Routing:
        """Load-balancing loss E · Σₑ fₑ Pₑ (Fedus et al. 2021, eq. 4), with fₑ the share of slots
        and Pₑ the mean of the full softmax, and z-loss mean(logsumexp²) (Zoph et al. 2022, eq. 5)."""
        share_E = slots_per_expert_E / slots_per_expert_E.sum()
        probability_E = logits_NE.softmax(-1).mean(0)
        return Routing(
            slots_per_expert_E,
            load_balancing_loss=self.n_experts * (share_E * probability_E).sum(),
            z_loss=logits_NE.logsumexp(-1).square().mean(),
        )


def grouped_mm_serves(x_SI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether `torch.nn.functional.grouped_mm` computes this product and its gradients.

    It refuses fp64 everywhere and rows that are no multiple of 16 bytes; on CUDA only bf16 has
    a kernel, and on MPS no release has it yet.
    """
    dtypes = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}.get(x_SI.device.type, ())
    aligned = all(size * x_SI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    return x_SI.dtype in dtypes and aligned


def grouped_product(x_SI: Tensor, weight_EOI: Tensor, slots_per_expert_E: Tensor) -> Tensor:
    """Each expert's run of rows times its matrix, (S, in) → (S, out), in one call."""
    ends_E = slots_per_expert_E.cumsum(0).to(torch.int32)
    return F.grouped_mm(x_SI, weight_EOI.transpose(1, 2), offs=ends_E)


def looped_product(x_SI: Tensor, weight_EOI: Tensor, slots_per_expert_E: Tensor) -> Tensor:
    """The same as `grouped_product`, expert by expert, on any device and dtype."""
    # unbind, not weight[e]: each index would build a gradient of the whole stack.
    runs = x_SI.split(slots_per_expert_E.tolist())
    return torch.cat([F.linear(x, weight) for x, weight in zip(runs, weight_EOI.unbind(0))])
