"""What training costs, counted and not measured."""

from __future__ import annotations

from functools import lru_cache

import torch

from config import ModelConfig
from models import count_parameters
from training.optimizer import muon_periods
from training.orthogonalise import orthogonalisation_flops


@lru_cache
def step_flops(model: ModelConfig, batch_size: int, counts_first: bool = False) -> float:
    """FLOPs of one training step on batches of full contexts: the network's and the optimizer's.

    Args:
        counts_first: the step counts the experts' choices before it trains, see training/step.py.
    """
    counting = blocks_flops(model, batch_size) if counts_first else 0
    return network_flops(model, batch_size) + counting + optimizer_flops(model, batch_size)


def network_flops(model: ModelConfig, batch_size: int) -> float:
    """Forward and backward pass: six per active parameter and token, and causal attention's scores and sums.

    Embedding and output matrix count once, as the latter.
    """
    looked_up = 0 if model.tied else model.vocab_size * model.d_model
    weights = 6 * (count_parameters(model).active - looked_up)
    attention = 6 * model.n_layers * model.context_length * model.d_model
    return batch_size * model.context_length * (weights + attention)


def blocks_flops(model: ModelConfig, batch_size: int) -> float:
    """Forward pass of the blocks alone: a third of the network's, without the output matrix."""
    output = 2 * batch_size * model.context_length * model.vocab_size * model.d_model
    return network_flops(model, batch_size) / 3 - output


def optimizer_flops(model: ModelConfig, batch_size: int, dtype: torch.dtype = torch.float32) -> float:
    """Muon's matrix products of one step in `dtype`, on average over the turns that matrices take."""
    of_matrices, of_experts = muon_periods(model, batch_size * model.context_length)
    d = model.d_model
    n_parts = model.queries_per_kv + 2  # of the fused projection, see training/muon.py
    attention = n_parts * orthogonalisation_flops(model.n_kv_heads * model.head_dim, d, dtype)
    attention += orthogonalisation_flops(d, d, dtype)
    mlp = (3 if model.is_llama else 2) * orthogonalisation_flops(model.d_hidden, d, dtype)
    mlps = model.n_experts / of_experts if model.is_moe else 1 / of_matrices
    return model.n_layers * (attention / of_matrices + mlps * mlp)
