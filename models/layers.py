"""The parts of a block that the architectures choose: norms, biases and the hidden layer.

    neox    LayerNorm                   down(gelu(up(x))), GELU exact, by erf       biases in all matrices
    llama   RMSNorm                     down(silu(gate(x)) · up(x)), or SwiGLU      no biases

Shape letters: B batch, T time, D d_model, F hidden units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from models.lean import InTwoParts, weight_to_compute_with
from models.products import linear


class Normalises:
    """A norm that computes in the weights' dtype, then hands on `output_dtype`.

    This is where a precision enters the network: what follows a norm computes in the dtype
    that the norm gives it, while the residual stream keeps the weights' dtype.
    """

    output_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.output_dtype is None else y.to(self.output_dtype)


class LayerNorm(Normalises, nn.LayerNorm):
    """Subtracts the mean, divides by the standard deviation; gain and bias (Ba et al. 2016)."""


class RMSNorm(Normalises, nn.RMSNorm):
    """Divides by the root mean square; a gain alone (Zhang & Sennrich 2019)."""


def norm(config: ModelConfig) -> LayerNorm | RMSNorm:
    return (RMSNorm if config.is_llama else LayerNorm)(config.d_model, eps=config.norm_eps)


class Linear(InTwoParts, nn.Linear):
    """A linear layer that computes in its input's dtype, whatever dtype its weights have.

    A weight of several matrices, (…, out, in), gives their outputs side by side.
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = weight_to_compute_with(self.weight, self.low, x.dtype)
        return linear(x, weight.flatten(0, -2), bias)


class MLP(nn.Module):
    """One hidden layer of GELU or of SwiGLU units (Shazeer 2020); (B, T, D) → (B, T, D).

    The two matrices that make a SwiGLU unit are one parameter, `up`, (gate|up, F, D).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.is_gated = config.is_llama
        self.up = Linear(config.d_model, config.d_hidden, bias=not config.is_llama)
        self.down = Linear(config.d_hidden, config.d_model, bias=not config.is_llama)
        if self.is_gated:
            self.up.weight = nn.Parameter(self.up.weight.new_empty(2, config.d_hidden, config.d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(activated(self.up(x_BTD), self.is_gated))


def activated(x: Tensor, is_gated: bool) -> Tensor:
    """Hidden units (…, F) of what `up` gave, (…, F) or (…, gate|up · F)."""
    if not is_gated:
        return F.gelu(x)
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def activated_backward(dy: Tensor, x: Tensor, is_gated: bool) -> Tensor:
    """The gradient of `activated` by x, for that by its result."""
    if not is_gated:
        return torch.ops.aten.gelu_backward(dy, x)
    gate, up = x.chunk(2, -1)
    return torch.cat((torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)), -1)
