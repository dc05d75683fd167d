"""Bilateral growth: more width by hypercloning, more depth by identity blocks, the function unchanged.

Width (after HyperCloning, Samragh et al. 2024): every axis is copied, and what reads an axis is
divided by the copies (growth_maps.py). Heads are copied whole, so head_dim and RoPE stay. A tied
embedding can only be copied; the final norm carries the 1/copies of the logits. An output matrix of
its own is one more reader.
Noise that sums to zero over the copies each weight reads makes clones differ without changing
what they compute together.

Depth (after LLaMA-Pro, Wu et al. 2024): a new block whose two projections into the residual are
zero adds nothing until it learns to. Its inner weights are drawn fresh: they are free, and a
copy would start as a clone.

The proofs are in docs/PHASE3_BILATERAL_GROWTH.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import Transformer
from models.shards import empty_like, filling, whole_parameter
from models.transformer import RESIDUAL_WRITERS, initialise_parameter
from transfer.growth_maps import AxisMap, GrowthMaps
from transfer.new_routers import turn_from_mean
from transfer.random_streams import parameter_generator


def hyperclone_weight(
    weight: Tensor,
    rows: AxisMap | None = None,
    columns: AxisMap | None = None,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """A matrix (…, out, in) grown along the axis that it writes and the axis that it reads.

    For a router and factor 2 this is `weight.repeat(1, 2) / 2`, plus noise that cancels.

    Args:
        rows, columns: how the two axes grow; None leaves one as it is.
        noise_std: cancelling noise along the columns, relative to the root mean square of the
            grown weights (their standard deviation, as their mean is about zero).
        generator: on the weight's device; needed where `noise_std` is not zero.
        into: where the result may be made, if the rows grow: a copy of a stack of experts takes as much as a layer.
    """
    if columns is not None:
        weight = columns.read(weight)
    if rows is not None:
        weight = rows.written(weight, -2, into)
    if columns is not None and noise_std:
        # Root mean square over the copies; columns of fillings are zero and do not count.
        std = noise_std * torch.linalg.vector_norm(weight).item() / math.sqrt(weight.numel() * columns.tiled_share)
        columns.add_cancelling_noise(weight, std, generator)
    return weight


@torch.no_grad()
def scale_bilaterally(
    old_model: Transformer,
    scale_factor: float = 2,
    extra_layers: int = 4,
    noise_std: float = 1.0,
    seed: int = 0,
    tokens_BT: Tensor | None = None,
    is_cloned: bool = True,
) -> Transformer:
    """A wider and deeper model that computes what `old_model` computes; the old model is untouched.

    Args:
        scale_factor: any factor of at least 1 that gives a whole number of heads.
        extra_layers: identity blocks, spread evenly among the old ones.
        noise_std: symmetry-breaking noise, relative to each grown weight's standard deviation.
        seed: of noise and new blocks. Each parameter draws from its own stream, so the result
            does not depend on the order in which parameters are grown.
        tokens_BT: with some of the training tokens, int64, one longer than the context, the routers of new blocks
            use their experts about alike from the first step on (new_routers.py).
        is_cloned: see `GrowthMaps.between`.
    Raises:
        UserError: the factor gives no whole number of heads, or something would shrink.
    """
    config = old_model.config.grown(scale_factor, extra_layers, is_cloned)
    maps = GrowthMaps.between(old_model.config, config, is_cloned)
    new_model = empty_like(old_model, config)
    new_model.compute_dtype = old_model.compute_dtype
    drawn_for = f"grown to {config.d_model} × {config.n_layers}"

    for name, parameter in new_model.named_parameters():
        generator = parameter_generator(seed, f"{drawn_for} {name}", parameter.device)
        old_name = maps.old_name(name)
        with filling(parameter) as value:
            if old_name is None:
                identity_parameter(name, value, config.n_layers, generator)
            else:
                old = whole_parameter(old_model, old_name)
                grown = grown_parameter(name, old, maps, noise_std, generator, into=value)
                if grown is not value:
                    value.copy_(grown)
    if tokens_BT is not None and config.is_moe:
        turn_from_mean(new_model, maps.new_blocks, tokens_BT)
    return new_model


def identity_parameter(name: str, parameter: Tensor, n_layers: int, generator: torch.Generator) -> None:
    """Fills one parameter of a block that adds nothing: fresh, with zero projections into the residual."""
    if name.endswith(RESIDUAL_WRITERS):
        parameter.zero_()
    else:
        initialise_parameter(name, parameter, n_layers, generator)


def grown_parameter(
    name: str,
    old: Tensor,
    maps: GrowthMaps,
    noise_std: float,
    generator: torch.Generator,
    into: Tensor | None = None,
) -> Tensor:
    """One old parameter, grown along every axis that it has; `into` as in `hyperclone_weight`."""
    if "norm" in name:
        return grown_norm(name, old, maps, noise_std, generator)
    rows, columns = maps.axes(name)
    if columns is None:
        return rows.written(old, into=into)
    return hyperclone_weight(old, rows, columns, noise_std, generator, into)


def grown_norm(name: str, old: Tensor, maps: GrowthMaps, noise_std: float, generator: torch.Generator) -> Tensor:
    """Gain or bias (D,) of a norm.

    The gain makes up for the variance, or mean of squares, that fillings take away; their own bias is
    zero, so that they leave the norm as zero. Before a tied embedding, which sums over the
    copies, the final norm is a reader of the residual, divided, with noise on its gain.
    (Noise in the embedding itself would change what enters the first block.)
    """
    reads = maps.axes(name)[1] is not None
    if name.endswith("bias"):
        return maps.residual.read(old) if reads else maps.residual.normalised(old)
    gain = (
        hyperclone_weight(old, columns=maps.residual, noise_std=noise_std, generator=generator)
        if reads
        else maps.gains.written(old)
    )
    return gain * math.sqrt(maps.residual.tiled_share)
