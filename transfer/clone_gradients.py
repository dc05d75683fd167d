"""Do clones learn different things? Compares the gradients that two copies of one unit receive.

A unit's own weights are the rows that produce it: a head's query, key and value rows, a hidden
unit's row, a residual feature's rows in what writes the residual. Clones whose rows receive equal
gradients stay clones for ever, and the grown model is the small one in disguise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models import Transformer, exact_arithmetic, next_token_loss
from models.shards import whole
from transfer.growth_maps import AxisMap, GrowthMaps


class CloneComparison(NamedTuple):
    """All pairs of one kind in one block whose gradients are not both zero."""

    block: int
    kind: str  # "heads", "hidden units", "residual features"
    n_pairs: int
    n_locked: int  # pairs whose gradients are equal but for rounding
    median_difference: float  # of |g₁ - g₂| / max(|g₁|, |g₂|), between 0 and 2


def compare_clone_gradients(
    model: Transformer, maps: GrowthMaps, tokens_BT: Tensor, locked_below: float
) -> list[CloneComparison]:
    """Gradients of the language-model loss, compared pair by pair in every block.

    Each gradient is reduced and freed as soon as it exists, and those of the two stacks of a layer's experts, which
    come together, are computed in a pass each: so no more than one of them is ever there. At reference size all of them
    together would be 8.6 GB. The model's own `.grad` fields are cleared.
    """
    inner: dict[Tensor, tuple[int, str, AxisMap]] = {}
    writers: dict[Tensor, tuple[int, str, AxisMap]] = {}
    for index, block in enumerate(model.blocks):
        if maps.block_origins[index] is not None:
            inner[block.attention.qkv.weight] = index, "heads", maps.qkv_rows
            inner[block.mlp.up.weight] = index, "hidden units", maps.hidden
        writers[block.attention.out.weight] = index, "residual features", maps.residual
        writers[block.mlp.down.weight] = index, "residual features", maps.residual
    return sorted(c for watched in (inner, writers) for c in compared(model, watched, tokens_BT, locked_below))


def compared(
    model: Transformer, watched: dict[Tensor, tuple[int, str, AxisMap]], tokens_BT: Tensor, locked_below: float
) -> list[CloneComparison]:
    """The comparisons of the watched parameters, each of a block, a kind and its axis of clones."""
    comparisons: list[CloneComparison] = []

    def reduce(parameter: Tensor) -> None:
        index, kind, axis = watched[parameter]
        difference = relative_differences(whole(parameter.grad), axis)
        parameter.grad = None
        if len(difference):
            locked = int((~(difference >= locked_below)).sum())  # also where it is no number
            comparisons.append(CloneComparison(index, kind, len(difference), locked, difference.median().item()))

    model.zero_grad(set_to_none=True)
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    handles = []
    try:
        for parameter in required:
            parameter.requires_grad_(parameter in watched)
        handles = [parameter.register_post_accumulate_grad_hook(reduce) for parameter in watched]
        with exact_arithmetic(model), torch.enable_grad():
            next_token_loss(model, tokens_BT)[0].backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in required.items():
            parameter.requires_grad_(before)
    return comparisons


def relative_differences(gradient: Tensor, axis: AxisMap) -> Tensor:
    """|g₁ - g₂| / max(|g₁|, |g₂|) for all clone pairs along the rows (…, row, in) of a gradient, on the CPU.

    Pairs without any gradient (an expert that no token chose) are left out.
    """
    first, second = (index.to(gradient.device) for index in axis.clone_pairs())
    by_matrix = []
    for matrix in gradient.view(-1, *gradient.shape[-2:]):
        g1, g2 = matrix.index_select(0, first), matrix.index_select(0, second)
        size = torch.maximum(*(torch.linalg.vector_norm(g, dim=-1) for g in (g1, g2)))
        by_matrix.append(torch.stack((size, torch.linalg.vector_norm(g1.sub_(g2), dim=-1))))
    size, distance = torch.cat(by_matrix, 1).cpu()  # once: what is left to do would wait for the device each time
    learning = size != 0
    return distance[learning] / size[learning]
