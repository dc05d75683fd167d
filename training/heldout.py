"""Held-out loss: what a model is worth, measured the same way in every phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import Transformer, exact_arithmetic, next_token_loss
from training.ranks import team


@torch.no_grad()
def heldout_loss(model: Transformer, batches: list[Tensor]) -> float:
    """Mean cross-entropy in nats a token over batches (batch, time + 1), of any sizes, in the weights' precision.

    Several processes share out the rows of each batch among them, if it has enough for each, and all get the mean.
    """
    total = 0.0
    with exact_arithmetic(model):
        for batch in batches:
            rows = batch if len(batch) % team().size else team().own_rows(batch)
            total += len(batch) * next_token_loss(model, rows.to(model.device))[0].item()
    return team().mean(total / sum(map(len, batches)))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats a token as bits a byte of text, which compares across vocabularies."""
    return loss / math.log(2) / bytes_per_token
