"""What training costs, counted and not measured."""

from __future__ import annotations

from functools import lru_cache

from config import ModelConfig
from models import count_parameters
from training.muon import STEPS
from training.optimizer import muon_period


@lru_cache
def step_flops(model: ModelConfig, batch_size: int) -> float:
    """FLOPs of one training step on batches of full contexts.

    Six per active parameter and token (embedding and output matrix count once, as the latter), causal
    attention's scores and sums, and Muon's iterations on all matrices that have their turn.
    """
    tokens = batch_size * model.context_length
    looked_up = 0 if model.tied else model.vocab_size * model.d_model
    network = (
        6 * (count_parameters(model).active - looked_up) + 6 * model.n_layers * model.context_length * model.d_model
    )
    d, mlps = model.d_model, max(model.n_experts, 1) / muon_period(model)
    square = STEPS * 6 * d**3
    rectangular = STEPS * (4 * d**2 * model.d_hidden + 2 * d**3)
    return tokens * network + model.n_layers * (4 * square + 2 * mlps * rectangular)
