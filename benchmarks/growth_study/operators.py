"""The other ways to make a large model of a small one, as the growth study compares them.

Each takes the old model, the new geometry, the strength of the noise and a seed, and returns a filled model. They are
written from the papers, for this architecture; `ours` and `zero_copy` alone keep width, depth and MoE exact at once.
"""

from __future__ import annotations

import torch

from config import ModelConfig
from models import Transformer
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def upcycled(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """Dense → MoE, experts as copies (Komatsuzaki et al. 2023)."""
    return upcycle_to_moe(old, new.n_experts, new.top_k, seed=seed)


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
def stacked(old: Transformer, new: ModelConfig, strength: float, seed: int) -> Transformer:
    """G_stack (Du et al. 2024): the whole model on top of itself."""
    model = Transformer.empty(new)
    parameters = dict(old.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            _, block, inside = name.split(".", 2)
            name = f"blocks.{int(block) % old.config.n_layers}.{inside}"
        parameter.copy_(parameters[name])
    return model


OPERATORS = {f.__name__: f for f in (upcycled, ours, zero_copy, naive, stacked)}
