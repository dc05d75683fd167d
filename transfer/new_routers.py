"""Fresh routers that use their experts about alike from the first step on.

What a block's norm hands to its router has a mean over tokens that is far from zero: 5 to 29 % of its energy in a
trained model of width 832, more in later blocks. On that mean a random row of a router gives its expert the same
advantage at every token, and of eight experts the least liked gets 0.2 to 5 % of the tokens in place of 12.5. Rows at
right angles to the mean give no expert an advantage: 8 to 9 %. A fresh router is free to choose, as experts that are
equal, or that add nothing, compute the same under any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models import Transformer
from models.shards import filling, whole
from transfer.probe import trace


@torch.no_grad()
def turn_from_mean(model: Transformer, blocks: list[int], tokens_BT: Tensor) -> None:
    """Takes out of the routers of `blocks`, in place, their part along the mean of what they read on the tokens.

    Args:
        tokens_BT: int64, one longer than the context, as for the loss; over several ranks the same on all.
    """
    inputs = trace(model, tokens_BT.to(model.device)).router_inputs
    for index in blocks:
        weight = model.blocks[index].mlp.router.weight
        weight_ED = whole(weight)
        mean_D = inputs[index].flatten(0, 1).to(weight_ED.dtype).mean(0)
        direction_D = mean_D / torch.linalg.vector_norm(mean_D).clamp(min=torch.finfo(mean_D.dtype).tiny)
        with filling(weight) as value_ED:
            value_ED.copy_(weight_ED - torch.outer(weight_ED @ direction_D, direction_D))
