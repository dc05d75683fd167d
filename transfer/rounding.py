"""What rounding alone leaves of an exact growth: drifts, and the largest that each dtype explains.

A drift is the largest difference over the root mean square of what was expected. Of a sum that goes on from block to
block, as the residual stream does, rounding is relative to the largest that it has been, not to what is left: trained
models write thousands to a few features in early blocks and take most of it away in late ones ("massive
activations", Sun et al. 2024). There a drift is over the largest root mean square so far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from config import TrainingConfig, UserError
from models import Transformer


class Precision(NamedTuple):
    """What rounding alone leaves of an exact growth, in one dtype of the weights.

    Gradients of living clones differ by about as much as they are large, those of locked clones by
    rounding alone. Where a unit saw a single token, its two clones come that close by chance, hence
    a share; noise that a growth left out locks the pairs of a whole kind.
    """

    tolerance: float  # largest drift
    turned_share: float  # of the routers' choices, those that rounding may have turned (near_ties.py)
    locked_below: float  # relative difference of two gradients that count as equal
    locked_share: float  # of the pairs of one kind in one block


# Measured in bf16, exact growth against the faults of the tests: RoPE scores drift by up to 0.025
# against 3.9 and more, router logits by 0.015 against 2.9, residuals of the median token by 0.07
# against 0.26; locked pairs are up to 13 % against 99 %. The loss does not tell them apart there.
# Of normal logits of 8 experts about 2.6 · x have their second and third within x of the root mean square:
# in bf16, where block after block lets two of them part by 0.02, some 5 % of all choices turn; in fp32, by 1e-5,
# fewer than one in ten thousand.
PRECISIONS = {
    torch.float64: Precision(1e-9, 0.01, 1e-4, 0.01),
    torch.float32: Precision(TrainingConfig.check_tolerance, 0.01, 1e-4, 0.01),
    torch.bfloat16: Precision(0.1, 0.1, 0.03, 0.5),
}


def precision_of(model: Transformer) -> Precision:
    """Raises UserError for weights in a dtype that the checks have no figures for."""
    dtype = model.embedding.weight.dtype
    if dtype not in PRECISIONS:
        known = ", ".join(dtype_name(dtype) for dtype in PRECISIONS)
        raise UserError(f"the weights are {dtype_name(dtype)}, but the growth checks know {known} only")
    return PRECISIONS[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def drift(actual: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """Largest difference over `size`; None is the root mean square of what was expected."""
    if actual.shape != expected.shape:
        return math.inf
    return _relative((actual - expected).abs().max(), rms(expected) if size is None else size)


def median_drift(actual: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """The same for the median token, of (batch, time, …)."""
    if actual.shape != expected.shape:
        return math.inf
    return _relative((actual - expected).abs().amax(-1).median(), rms(expected) if size is None else size)


def _relative(difference: Tensor, size: Tensor) -> float:
    found = (difference / size).item()
    # max() over layers would pass over a drift that is no number.
    return math.inf if math.isnan(found) else found
