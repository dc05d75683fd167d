"""How lean memory keeps numbers: a weight in three bytes, a momentum in one.

A weight is split (after FlashOptim, arXiv 2602.23349): fp32 is rounded to its 24 leading bits, within 2⁻¹⁶ of it. Of those
`weight`, the parameter, is the nearest bf16, and `weight_low`, a buffer beside it, what that lacks.

    fp32 bits b    q = (b + 0x80) >> 8    high = (q + 0x80) >> 8, as bf16    low = q - (high << 8), int8

Training computes with `weight` alone, in either precision and on every device: so it is one function that is trained,
its gradient is bf16, and no copy is ever made to compute with. The optimizer moves both parts. Exact arithmetic reads
both, joined one matrix at a time where a product needs it.

A momentum is a signed square in 255 steps, of the largest of its row: small entries keep more digits than large
ones, whatever the largest is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Of all that are no number, whose bits rounding could carry over into those of one, this one is kept.
NOT_A_NUMBER = float("nan")
STEPS = 127


class InTwoParts(nn.Module):
    """A layer whose `weight` may be kept in two parts."""

    reads_low = False  # in exact arithmetic

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.register_buffer("weight_low", None)

    @property
    def low(self) -> Tensor | None:
        """What a product has to join to `weight`; None where that alone is what it computes with."""
        return self.weight_low if self.reads_low else None


def weight_to_compute_with(weight: Tensor, low: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight in the dtype of a product; `low` as of `InTwoParts`."""
    return (weight if low is None else Joined.apply(weight, low)).to(dtype)


class Joined(torch.autograd.Function):
    """`joined`, whose gradient is that of the bf16 part."""

    @staticmethod
    def forward(ctx, high: Tensor, low: Tensor) -> Tensor:
        return joined(high, low)

    @staticmethod
    def backward(ctx, d_joined: Tensor):
        return d_joined.to(torch.bfloat16), None


def split(exact: Tensor) -> tuple[Tensor, Tensor]:
    """An fp32 tensor as bf16 and int8 ones of its shape. Of the largest numbers, above 3.39e38, the bf16 is infinite."""
    bits = torch.where(exact.isnan(), NOT_A_NUMBER, exact).view(torch.int32).add_(0x80).bitwise_right_shift_(8)
    high = bits.add(0x80).bitwise_right_shift_(8)
    low = bits.sub_(high, alpha=256)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int8)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The fp32 tensor of which `split` made these two, rounded to 24 bits; `split` makes these two of it again."""
    bits = high.detach().view(torch.int16).to(torch.int32)
    return bits.mul_(256).add_(low.to(torch.int32)).mul_(256).view(torch.float32)


@torch.no_grad()
def keep_weights(model: nn.Module, in_two_parts: bool) -> None:
    """From now on the model's fp32 matrices are kept split, or whole again; in place, one after another.

    Parameters stay the same objects.
    """
    for layer in layers_in_parts(model):
        weight, low = layer.weight.data, layer.weight_low
        if in_two_parts and weight.dtype == torch.float32:
            layer.weight_low = torch.empty_like(weight, dtype=torch.int8)
            layer.weight.data = torch.empty_like(weight, dtype=torch.bfloat16)
            parts = zip(*(matrices(part) for part in (weight, layer.weight.data, layer.weight_low)))
            for exact_OI, high_OI, low_OI in parts:
                store(exact_OI, high_OI, low_OI)
        elif not in_two_parts and low is not None:
            layer.weight.data, layer.weight_low = joined(weight, low), None


def store(exact: Tensor, high: Tensor, low: Tensor) -> None:
    """Splits `exact` into two tensors that are there."""
    for part, value in zip((high, low), split(exact)):
        part.copy_(value)


def layers_in_parts(model: nn.Module) -> Iterator[InTwoParts]:
    return (module for module in model.modules() if isinstance(module, InTwoParts))


def take_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """`load_state_dict` of a model on meta, whose tensors become the given ones, in as many parts as they have.

    Raises:
        RuntimeError, AttributeError: they are not those of the model.
    """
    for name in weights:
        layer_name, _, kind = name.rpartition(".")
        if kind == "weight_low":
            layer = model.get_submodule(layer_name)
            layer.weight_low = torch.empty_like(layer.weight, dtype=torch.int8)
    model.load_state_dict(weights, assign=True)


def matrices(stack: Tensor) -> Tensor:
    """(…, out, in) → (n, out, in), a view."""
    return stack.view(-1, *stack.shape[-2:])


def compressed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (…, out, in) as int8 and the largest of each, fp32 (…, out, 1); `expanded` is about the inverse."""
    scale = values.abs().amax(-1, keepdim=True)
    share = (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).abs_().sqrt_().mul_(STEPS).round_()
    return share.copysign_(values).to(torch.int8), scale


def expanded(codes: Tensor, scale: Tensor) -> Tensor:
    """fp32, of which `compressed` makes the same two again."""
    share = codes.to(torch.float32).div_(STEPS)
    return share.mul_(share.abs()).mul_(scale)
