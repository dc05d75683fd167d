"""Our experts, Hugging Face's, and dense MLPs that cost as much, all on the same weights and the same routing.

Shape letters: N tokens, S slots (N × top_k), E experts, D d_model, F hidden units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig, UserError
from models.experts import apply_experts, assign_slots
from models.moe import MoE

# |difference| / |expected| of outputs and gradients; the expected ones are computed in fp32.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# Hugging Face's grouped_mm adds up the rows of a bias's gradient in bf16: 5 % off at 2 k rows, 13 % at 16 k.
RUNNING_SUM_TOLERANCE = 0.3
GRADIENTS = ("inputs", "logits", "up weights", "up biases", "down weights", "down biases")


@dataclass(frozen=True)
class Problem:
    """One layer's weights, input and routing; what the layer above sends back is `d_output_ND`."""

    moe: MoE
    x_ND: Tensor
    expert_Nk: Tensor
    logits_Nk: Tensor  # of the token's experts, fp32; the gates are their softmax
    d_output_ND: Tensor

    @property
    def weights(self) -> list[Tensor]:
        return [self.moe.up.weight, self.moe.up.bias, self.moe.down.weight, self.moe.down.bias]

    @property
    def flops(self) -> int:
        """Of the matrix products, forward and backward."""
        return 3 * 2 * 2 * self.expert_Nk.numel() * self.moe.up.weight[0].numel()

    def to(self, dtype: torch.dtype) -> Problem:
        x, d_output = (t.detach().to(dtype) for t in (self.x_ND, self.d_output_ND))
        logits = self.logits_Nk.detach().clone().requires_grad_()
        return Problem(copy.deepcopy(self.moe).to(dtype), x.requires_grad_(), self.expert_Nk, logits, d_output)


def make_problem(d_model: int, expert_Nk: Tensor, n_experts: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """Random weights, input, logits and output gradient for a given routing, int64 (N, top_k)."""
    generator = torch.Generator().manual_seed(0)
    n_tokens, top_k = expert_Nk.shape
    moe = MoE(ModelConfig(1, d_model, 1, 1, n_experts, top_k))
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, d_model**-0.5, generator=generator)
    logits_Nk = torch.randn(n_tokens, top_k, generator=generator).to(device).requires_grad_()
    x_ND, d_output_ND = (torch.randn(n_tokens, d_model, generator=generator).to(device, dtype) for _ in range(2))
    return Problem(moe.to(device, dtype), x_ND.requires_grad_(), expert_Nk.to(device), logits_Nk, d_output_ND)


@dataclass(frozen=True)
class Contender:
    """A layer to be timed: its forward pass, and the tensors that get gradients."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    d_output: Tensor
    bias_tolerance: float = 0.0  # where it is above that of everything else

    def __call__(self) -> list[Tensor]:
        """Forward and backward: the output and the gradient of each leaf."""
        y = self.forward()
        return [y, *torch.autograd.grad(y, self.leaves, self.d_output)]


def ours(problem: Problem) -> Contender:
    x_ND, expert_Nk, logits_Nk = problem.x_ND, problem.expert_Nk, problem.logits_Nk
    up, down = problem.weights[:2], problem.weights[2:]

    def forward() -> Tensor:
        slots = assign_slots(expert_Nk, problem.moe.n_experts, x_ND.dtype)
        return apply_experts(x_ND, logits_Nk, slots, up, down)

    return Contender(forward, [x_ND, logits_Nk, *problem.weights], problem.d_output_ND)


def hugging_face(problem: Problem, implementation: str, compiled: bool = False) -> Contender:
    """Experts of `transformers`, by "grouped_mm" or "eager", which is a loop over experts.

    Raises:
        UserError: `transformers` is not installed.
    """
    layer = hugging_face_experts(problem, implementation)
    if compiled:
        # Each size is compiled for itself: after a second one torch would generalise, which is slower.
        torch.compiler.reset()
        layer = torch.compile(layer, dynamic=False)
    x_ND, expert_Nk, logits_Nk = problem.x_ND, problem.expert_Nk, problem.logits_Nk

    def forward() -> Tensor:
        # Their routers round the gates to the precision of the layer.
        return layer(x_ND, expert_Nk, logits_Nk.softmax(-1).to(x_ND.dtype))

    sums_in_bf16 = implementation == "grouped_mm" and x_ND.dtype == torch.bfloat16
    bias_tolerance = RUNNING_SUM_TOLERANCE if sums_in_bf16 else 0.0
    return Contender(forward, [x_ND, logits_Nk, *problem.weights], problem.d_output_ND, bias_tolerance)


def hugging_face_experts(problem: Problem, implementation: str) -> nn.Module:
    try:
        from transformers.integrations.moe import use_experts_implementation
    except ImportError as error:
        raise no_peers(error) from error

    @use_experts_implementation(has_gate=False, has_bias=True)
    class Experts(nn.Module):
        """As models of transformers write them: this forward pass is "eager"."""

        def __init__(self, config):
            super().__init__()
            self.num_experts = problem.moe.n_experts
            self.up_proj, self.up_proj_bias, self.down_proj, self.down_proj_bias = problem.weights
            self.act_fn = nn.GELU()

        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            result = torch.zeros_like(hidden_states)
            with torch.no_grad():
                mask = F.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
                hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
            for expert in hit[:, 0]:
                position, token = torch.where(mask[expert])
                hidden = F.linear(hidden_states[token], self.up_proj[expert], self.up_proj_bias[expert])
                y = F.linear(self.act_fn(hidden), self.down_proj[expert], self.down_proj_bias[expert])
                y = y * top_k_weights[token, position, None]
                result.index_add_(0, token, y.to(result.dtype))
            return result

    return Experts(SimpleNamespace(_experts_implementation=implementation))


def no_peers(error: ImportError) -> UserError:
    return UserError(f"{error}; the peers come with: pip install -r requirements-dev.txt")


def dense_on_slots(problem: Problem) -> Contender:
    """The dense MLP d → 4d → d on tokens × top_k rows: one expert's weights read for all of them."""
    top_k = problem.expert_Nk.shape[1]
    x_SD, d_output_SD = (t.detach().repeat(top_k, 1) for t in (problem.x_ND, problem.d_output_ND))
    weights = [weight[0].detach().clone() for weight in problem.weights]
    return dense(x_SD, weights, d_output_SD)


def dense_of_hidden_units(problem: Problem) -> Contender:
    """The dense MLP d → top_k · 4d → d on the tokens themselves."""
    top_k = problem.expert_Nk.shape[1]
    up, up_bias, down, down_bias = (weight[:top_k].detach() for weight in problem.weights)
    weights = [up.flatten(0, 1).clone(), up_bias.flatten().clone(), torch.cat(tuple(down), dim=1), down_bias[0].clone()]
    return dense(problem.x_ND.detach().clone(), weights, problem.d_output_ND)


def dense(x: Tensor, weights: list[Tensor], d_output: Tensor) -> Contender:
    leaves = [tensor.requires_grad_() for tensor in (x, *weights)]
    up, up_bias, down, down_bias = weights
    return Contender(lambda: F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias), leaves, d_output)


def require_agreement(contenders: dict[str, Contender], expected: list[Tensor], dtype: torch.dtype) -> dict[str, float]:
    """The largest |difference| / |expected| of each contender's output and gradients.

    Args:
        expected: output and gradients, as a `Contender` returns them, in fp32.
    Raises:
        AssertionError: a contender computes something else, and its time would say nothing.
    """
    errors = {}
    for name, contender in contenders.items():
        errors[name] = 0.0
        for what, got, wanted in zip(("output", *GRADIENTS), contender(), expected, strict=True):
            tolerance = max(TOLERANCE[dtype], contender.bias_tolerance if "biases" in what else 0.0)
            error = ((got.float() - wanted).norm() / wanted.norm()).item()
            # NaN must fail, too.
            if not error <= tolerance:
                raise AssertionError(f"{name}: {what} differ by {error:.1e} of their size, allowed {tolerance:g}")
            errors[name] = max(errors[name], error)
    return errors
