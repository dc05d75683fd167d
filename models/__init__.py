"""The transformer, its mixture-of-experts layer, its loss, builders, counts and files."""

from __future__ import annotations

import torch

from config import ModelConfig, UserError
from models.files import load_model, save_model
from models.loss import next_token_loss, router_loss
from models.moe import MoE, Routing
from models.parameters import ParameterCount, count_parameters, summary
from models.transformer import Transformer, exact_arithmetic

__all__ = [
    "MoE",
    "ParameterCount",
    "Routing",
    "Transformer",
    "build_dense_model",
    "build_moe_model",
    "count_parameters",
    "exact_arithmetic",
    "load_model",
    "next_token_loss",
    "router_loss",
    "save_model",
    "summary",
]


def build_dense_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A freshly initialised dense model, fp32, on the CPU.

    Raises:
        UserError: `config` has experts.
    """
    if config.is_moe:
        raise UserError(f"a dense model has no experts, but n_experts is {config.n_experts}")
    return Transformer.empty(config).initialise(torch.Generator().manual_seed(seed))


def build_moe_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A freshly initialised mixture of experts, fp32, on the CPU.

    Raises:
        UserError: `config` has no experts.
    """
    if not config.is_moe:
        raise UserError("a mixture of experts needs n_experts of at least 1")
    return Transformer.empty(config).initialise(torch.Generator().manual_seed(seed))
