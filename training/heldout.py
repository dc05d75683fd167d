"""Held-out loss: what a model is worth, measured the same way in every phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import Transformer, exact_arithmetic, next_token_loss
from training.ranks import team


@torch.no_grad()
def heldout_loss(model: Transformer, batches: list[Tensor]) -> float:
    """Mean cross-entropy in nats a token over batches (batch, time + 1), in the weights' precision.

    Several processes share out the rows of each batch among them, and all get the mean.
    """
    with exact_arithmetic(model):
        losses = [next_token_loss(model, team().own_rows(batch).to(model.device))[0].item() for batch in batches]
    return team().mean(sum(losses) / len(losses))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats a token as bits a byte of text, which compares across vocabularies."""
    return loss / math.log(2) / bytes_per_token
