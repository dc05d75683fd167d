"""Parameter counts: all, and those that one token uses; and a model in one line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from config import ModelConfig
from models.transformer import Transformer


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters. `active` leaves out the experts that a token does not use."""

    total: int
    active: int
    idle_experts: int

    @property
    def inactive(self) -> int:
        return self.total - self.active

    @property
    def efficiency(self) -> float:
        """Active share, 0 to 1."""
        return self.active / self.total


def count_parameters(model: Transformer | ModelConfig) -> ParameterCount:
    """Counts a model's parameters, or those that a geometry would have (nothing is allocated)."""
    return of_geometry(model) if isinstance(model, ModelConfig) else counted(model)


@lru_cache
def of_geometry(config: ModelConfig) -> ParameterCount:
    with torch.device("meta"):
        return counted(Transformer(config))


def counted(model: Transformer) -> ParameterCount:
    config = model.config
    total = sum(parameter.numel() for parameter in model.parameters())
    if not config.is_moe:
        return ParameterCount(total, total, 0)
    stacked = sum(p.numel() for name, p in model.named_parameters() if ".mlp.up." in name or ".mlp.down." in name)
    idle_per_layer = config.n_experts - config.top_k
    return ParameterCount(total, total - stacked * idle_per_layer // config.n_experts, idle_per_layer * config.n_layers)


def summary(config: ModelConfig) -> str:
    """Geometry and parameter counts in one line."""
    kinds = ["Llama"] * config.is_llama
    kinds += [f"{config.n_experts} experts, top {config.top_k}" if config.is_moe else "dense"]
    kinds += ["parallel residual"] * config.parallel_residual
    kinds += [f"rotary {config.rotary_share:g}"] * (config.rotary_share != 1)
    kinds += ["own output matrix"] * (not config.tied)
    heads = f"{config.n_heads} heads" + (
        f" on {config.n_kv_heads} key-value heads" if config.queries_per_kv > 1 else ""
    )
    count = count_parameters(config)
    return (
        f"width {config.d_model}, {config.n_layers} blocks, {heads}, {', '.join(kinds)}: "
        f"{count.total:,} parameters, {count.active:,} active per token"
    )
