"""The other ways to make a large model of a small one, as the growth study compares them.

Each takes the old model, the new geometry, the strength of what makes copies differ (its own measure) and a seed,
and returns a filled model. They are written from the papers, for this architecture; none but `ours` keeps width,
depth and MoE exact at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from config import ModelConfig
from models import Transformer
from transfer.random_streams import parameter_generator
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def upcycled(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """Dense → MoE, experts as copies (Komatsuzaki et al. 2023)."""
    return upcycle_to_moe(old, new.n_experts, new.top_k, seed=seed)


@torch.no_grad()
def drop_upcycled(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """Drop-Upcycling (Nakamura et al. 2025): in each expert the share `strength` of its hidden units is drawn anew.

    Whole units: the same rows of the first matrix and columns of the second, with the old weights' deviation.
    """
    model = upcycled(old, new, 0.0, seed)
    for number, block in enumerate(model.blocks):
        up, down = block.mlp.up, block.mlp.down
        n_units = up.weight.shape[1]
        deviations = up.weight.std(), down.weight.std()
        for expert in range(new.n_experts):
            generator = parameter_generator(seed, f"drop {number} {expert}", up.weight.device)
            units = torch.randperm(n_units, generator=generator)[: round(strength * n_units)]
            up.bias[expert, units] = 0
            for weight, deviation in zip((up.weight[expert].T, down.weight[expert]), deviations):
                weight[:, units] = deviation * torch.randn(len(weight), len(units), generator=generator)
    return model


def ours(old: Transformer, new: ModelConfig, strength: float, seed: int, is_cloned: bool = True) -> Transformer:
    """Bilateral growth with cancelling noise. Without noise and extra layers: HyperCloning (Samragh et al. 2024)."""
    factor = new.d_model / old.config.d_model
    extra_layers = new.n_layers - old.config.n_layers
    return scale_bilaterally(old, factor, extra_layers, strength, seed=seed, is_cloned=is_cloned)


def zero_copy(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """Exact as `ours`, but new features and hidden units are no clones: they compute zero and are read at random."""
    return ours(old, new, strength, seed, is_cloned=False)


@torch.no_grad()
def naive(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """A fresh large model whose first rows, columns and blocks are overwritten with the small one's."""
    model = Transformer.empty(new).initialise(torch.Generator().manual_seed(seed))
    parameters = dict(model.named_parameters())
    for name, value in old.named_parameters():
        parameters[name][tuple(slice(size) for size in value.shape)] = value
    return model


@torch.no_grad()
def predecessor(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """Tiled and divided by the factor, the embedding too; the last block copied as extra layers; noise over rows.

    After yashwantram97/model-growth, whose extra blocks are no identity and whose noise does not cancel.
    """
    wide = scale_bilaterally(old, new.d_model / old.config.d_model, 0, 0.0, seed=seed)
    last = old.config.n_layers - 1
    model = with_blocks_of(wide, new, lambda block: min(block, last))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            generator = parameter_generator(seed, f"rows {name}", parameter.device)
            noise = torch.empty_like(parameter).normal_(generator=generator)
            parameter += strength * parameter.std() * noise
    # The head, divided for twice the features, is the embedding; the final norm is copied as it was.
    factor = new.d_model / old.config.d_model
    model.embedding.weight /= factor
    model.final_norm.weight *= factor
    model.final_norm.bias *= factor
    return model


def stacked(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """G_stack (Du et al. 2024): the whole model on top of itself."""
    return with_blocks_of(old, new, lambda block: block % old.config.n_layers)


@torch.no_grad()
def with_blocks_of(old: Transformer, new: ModelConfig, source: Callable[[int], int]) -> Transformer:
    """A model of geometry `new`, as wide as `old`, whose block i is a copy of old block `source(i)`."""
    model = Transformer.empty(new)
    parameters = dict(old.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            _, block, inside = name.split(".", 2)
            name = f"blocks.{source(int(block))}.{inside}"
        parameter.copy_(parameters[name])
    return model


OPERATORS = {f.__name__: f for f in (upcycled, drop_upcycled, ours, zero_copy, naive, predecessor, stacked)}
