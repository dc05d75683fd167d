"""What training costs, counted and not measured."""

from __future__ import annotations

from functools import lru_cache

from config import ModelConfig
from models import count_parameters
from training.muon import STEPS
from training.optimizer import muon_period


@lru_cache
def step_flops(model: ModelConfig, batch_size: int, counts_first: bool = False) -> float:
    """FLOPs of one training step on batches of full contexts: the network's, and Muon's on all matrices in their turn.

    Args:
        counts_first: the step counts the experts' choices before it trains, see training/step.py.
    """
    d, mlps = model.d_model, max(model.n_experts, 1) / muon_period(model)
    n_parts = model.queries_per_kv + 2  # of the fused projection, see training/muon.py
    attention = n_parts * orthogonalising(model.n_kv_heads * model.head_dim, d) + orthogonalising(d, d)
    mlp = (3 if model.is_llama else 2) * orthogonalising(model.d_hidden, d)
    counting = blocks_flops(model, batch_size) if counts_first else 0
    return network_flops(model, batch_size) + counting + model.n_layers * (attention + mlps * mlp)


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


def orthogonalising(n_rows: int, n_columns: int) -> float:
    """FLOPs of Muon's iterations on one matrix."""
    short, long = sorted((n_rows, n_columns))
    return STEPS * (4 * short**2 * long + 2 * short**3)
