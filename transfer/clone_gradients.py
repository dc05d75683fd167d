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

    Each gradient is reduced and freed as soon as it exists, so the pass never holds more than one
    of them: at reference size all of them together would be 8.6 GB. The model's own `.grad` fields
    are cleared.
    """
    comparisons: list[CloneComparison] = []
    watched: dict[Tensor, tuple[int, str, AxisMap]] = {}
    for index, block in enumerate(model.blocks):
        if maps.block_origins[index] is not None:
            watched[block.attention.qkv.weight] = index, "heads", maps.qkv_rows
            watched[block.mlp.up.weight] = index, "hidden units", maps.hidden
        watched[block.attention.out.weight] = index, "residual features", maps.residual
        watched[block.mlp.down.weight] = index, "residual features", maps.residual

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
    return sorted(comparisons)


def relative_differences(gradient: Tensor, axis: AxisMap) -> Tensor:
    """|g₁ - g₂| / max(|g₁|, |g₂|) for all clone pairs along the rows (…, row, in) of a gradient, on the CPU.

    Pairs without any gradient (an expert that no token chose) are left out.
    """
    first, second = (index.to(gradient.device) for index in axis.clone_pairs())
    g1, g2 = gradient.index_select(-2, first), gradient.index_select(-2, second)
    size = torch.maximum(*(torch.linalg.vector_norm(g, dim=-1) for g in (g1, g2))).flatten()
    distance = torch.linalg.vector_norm(g1.sub_(g2), dim=-1).flatten()
    size, distance = torch.stack((size, distance)).cpu()  # once: what is left to do would wait for the device each time
    learning = size != 0
    return distance[learning] / size[learning]
