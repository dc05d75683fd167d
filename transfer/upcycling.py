"""Upcycling, dense → mixture of experts (Komatsuzaki et al. 2022).

Every expert starts as a copy of the dense MLP. The gates of a token's experts sum to one, so the
mixture of equal experts is the MLP, whatever the router says: the function does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import UserError
from models import Transformer
from models.shards import empty_like, filling, whole_parameter
from transfer.new_routers import turn_from_mean
from transfer.random_streams import parameter_generator


@torch.no_grad()
def upcycle_to_moe(
    dense_model: Transformer,
    n_experts: int = 8,
    top_k: int = 2,
    router_std: float = 0.02,
    seed: int = 0,
    tokens_BT: Tensor | None = None,
) -> Transformer:
    """A mixture of experts that computes what `dense_model` computes; the dense model is untouched.

    Args:
        router_std: standard deviation of the routers' weights. Zero would tie all logits and
            send every token to the same `top_k` experts.
        tokens_BT: with some of the training tokens, int64, one longer than the context, the experts are used about
            alike from the first step on (new_routers.py).
    Raises:
        UserError: the model has experts already, or `top_k` and `n_experts` do not fit.
    """
    if dense_model.config.is_moe:
        raise UserError(f"upcycling starts from a dense model, but this one has {dense_model.config.n_experts} experts")
    moe = empty_like(dense_model, dense_model.config.upcycled(n_experts, top_k))
    for name, parameter in moe.named_parameters():
        with filling(parameter) as value:
            if name.endswith("router.weight"):
                value.normal_(
                    0.0, router_std, generator=parameter_generator(seed, f"upcycled {name}", parameter.device)
                )
            else:
                # A dense weight (out, in) fills a stack (n_experts, out, in) by broadcasting.
                value.copy_(whole_parameter(dense_model, name))
    moe.compute_dtype = dense_model.compute_dtype
    if tokens_BT is not None:
        turn_from_mean(moe, list(range(len(moe.blocks))), tokens_BT)
    return moe
