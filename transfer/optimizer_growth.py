"""Optimizer state through a boundary: moments follow the gradients of the parameters that they belong to.

A weight that grows as θ' = M θ leaves the loss L'(M θ) = L(θ), hence Mᵀ g' = g: gradients travel
through the transpose. Where clones are equal, g' itself is known: a copy of a unit carries 1/copies of
its influence, so along an axis that a weight *writes* gradients are divided by the copies, and along
an axis that it *reads* they are copied: rows and columns change their parts.

First moments (Adam's exp_avg, Muon's momentum) are mapped like gradients, second moments by the
squares of the same factors. New parameters without an ancestor, identity blocks and routers, have no
state yet. The derivations, and where they stop being exact (mean-filled features), are in
docs/PHASE3_BILATERAL_GROWTH.md, section 6.

A state is a dict by parameter name of dicts by moment: exp_avg, exp_avg_sq, momentum_buffer (shaped
like the parameter; with a momentum_scale where lean memory keeps it in one byte) and step (a scalar).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from config import ModelConfig
from models import Transformer
from models.lean import compressed, expanded
from models.shards import shared_as, whole
from transfer.growth_maps import GrowthMaps

Moments = dict[str, dict[str, Tensor]]
# How often a moment contains the gradient's factors.
POWERS = {"exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2}


def grow_optimizer_state(
    state: Moments, old: ModelConfig, new: ModelConfig, way: str, frees: bool = False, is_cloned: bool = True
) -> Moments:
    """The state with which training goes on after a boundary; the given one is untouched, unless `frees`.

    Args:
        state: of the model with geometry `old`; parameters may be missing.
        new: geometry after upcycling, or after bilateral growth.
        way: "grown" maps all moments. "asymmetric" maps them, then zeroes those of all clones but the
            first (after SPARKLING, 2026), which parts the clones. "fresh" returns no state.
        frees: takes each parameter's moments out of `state` when they have grown, so that old and new ones are never
            all there at once.
        is_cloned: see `GrowthMaps.between`.
    Raises:
        UserError: `new` is no growth of `old`.
        ValueError: an unknown `way`.
    """
    if way not in ("grown", "asymmetric", "fresh"):
        raise ValueError(f"unknown way to grow an optimizer's state: {way!r}")
    take = state.pop if frees else state.get
    if way == "fresh":
        if frees:
            state.clear()
        return {}
    only_first = way == "asymmetric"
    grown = {}
    if new == old.upcycled(new.n_experts, new.top_k) and not old.is_moe:
        for name in list(state):
            if moments := take(name):
                grown[name] = over_ranks(moments, upcycled_moments, name, new=new, only_first_expert=only_first)
        return grown
    maps = GrowthMaps.between(old, new, is_cloned)
    with torch.device("meta"):
        names = [name for name, _ in Transformer(new).named_parameters()]
    for name in names:
        if moments := take(maps.old_name(name), None):
            grown[name] = over_ranks(moments, grown_moments, name, maps=maps, only_first_copies=only_first)
    return grown


def over_ranks(moments: dict[str, Tensor], grow: Callable[..., dict[str, Tensor]], name: str, **how):
    """One parameter's moments, grown whole and in fp32; where ranks share them, each keeps its part of what they become."""
    grown = grow(name, widened({key: whole(value) for key, value in moments.items()}), **how)
    grown = narrowed(grown) if "momentum_scale" in moments else grown
    return {key: shared_as(value, moments[key]) for key, value in grown.items()}


def narrowed(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Muon's moments of one parameter with the momentum in one byte, as lean memory keeps it (models/lean.py)."""
    if "momentum_scale" in moments:
        return dict(moments)
    codes, scale = compressed(moments["momentum_buffer"])
    return moments | {"momentum_buffer": codes, "momentum_scale": scale}


def widened(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with the momentum in fp32; other moments as they are."""
    if "momentum_scale" not in moments:
        return dict(moments)
    rest = {key: value for key, value in moments.items() if key != "momentum_scale"}
    return rest | {"momentum_buffer": expanded(moments["momentum_buffer"], moments["momentum_scale"])}


def grown_moments(
    name: str, moments: dict[str, Tensor], maps: GrowthMaps, only_first_copies: bool
) -> dict[str, Tensor]:
    """The moments of one parameter that grew."""
    grown = {}
    for key, value in moments.items():
        if key not in POWERS:
            grown[key] = value.clone()
            continue
        grown[key] = grown_gradient(name, value, maps, POWERS[key])
        if only_first_copies:
            rows, columns = maps.axes(name)
            if columns is not None:
                columns.zero_later_copies(grown[key], -1)
            if rows is not None:
                rows.zero_later_copies(grown[key], -1 if columns is None else -2)
    return grown


def grown_gradient(name: str, gradient: Tensor, maps: GrowthMaps, power: int = 1) -> Tensor:
    """A gradient, shaped like the old parameter `name`, as the grown model with equal clones has it.

    Exact for whole width factors. With mean-filled features the part that moves tiles against
    fillings is unknown to the old model, and taken as zero.

    Args:
        power: 2 for a squared gradient.
    """
    rows, columns = maps.axes(name)
    is_gain = name.endswith("norm.weight")
    if columns is not None:
        # Only the bias of the final norm receives a gradient at fillings: the embedding's mean reads it.
        is_final_bias = name == "final_norm.bias"
        gradient = columns.written(gradient) if is_final_bias else columns.normalised(gradient)
    if rows is not None:
        gradient = rows.read(gradient, -1 if columns is None else -2, power)
    return gradient / maps.residual.tiled_share ** (power / 2) if is_gain else gradient


def upcycled_moments(
    name: str, moments: dict[str, Tensor], new: ModelConfig, only_first_expert: bool
) -> dict[str, Tensor]:
    """The moments of a dense parameter in the mixture of experts; an MLP's are stacked, (n_experts, …).

    An expert sees top_k / n_experts of the tokens, each through a gate of about 1 / top_k. Its mean
    gradient is 1/E of the dense one; the variance of that mean is 1/(top_k E) of the dense one's.
    The second moment is the sum of squared mean and variance, and Adam has both: with m and v,

        m' = m / E,    v' = m² / E² + max(v - m², 0) / (top_k E).
    """
    moments = {key: value.clone() for key, value in moments.items()}
    if ".mlp." not in name:
        return moments
    E = new.n_experts
    stack = {key: value.expand(E, *value.shape).clone() for key, value in moments.items() if key in POWERS}
    if "exp_avg_sq" in moments:
        signal = moments["exp_avg"].square()
        noise = (moments["exp_avg_sq"] - signal).clamp(min=0)
        stack["exp_avg_sq"].copy_(signal / E**2 + noise / (new.top_k * E))
    for key in ("exp_avg", "momentum_buffer"):
        if key in stack:
            stack[key] /= E
    if only_first_expert:
        for value in stack.values():
            value[1:] = 0
    return moments | stack
