"""Held-out loss and stories: what a model is worth, measured the same way in every phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import Transformer, exact_arithmetic, next_token_loss
from training import ranks


@torch.no_grad()
def heldout_loss(model: Transformer, batches: list[Tensor]) -> float:
    """Mean cross-entropy in nats a token over batches (batch, time + 1), in the weights' precision.

    Ranks share out the rows of each batch among them, and all get the mean.
    """
    with exact_arithmetic(model):
        losses = [next_token_loss(model, ranks.own_rows(batch).to(model.device))[0].item() for batch in batches]
    return ranks.mean(sum(losses) / len(losses))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats a token as bits a byte of text, which compares across vocabularies."""
    return loss / math.log(2) / bytes_per_token


@torch.no_grad()
def greedy_continuation(model: Transformer, prompt_ids: list[int], n_tokens: int, end_of_text: int) -> list[int]:
    """The likeliest next token, `n_tokens` times or until the story ends; without the prompt.

    It computes in the weights' precision, so that a model and its grown self tell the same story.
    """
    ids = list(prompt_ids)
    with exact_arithmetic(model):
        for _ in range(n_tokens):
            window = torch.tensor([ids[-model.config.context_length :]], device=model.device)
            hidden_BTD, _ = model.hidden(window)
            next_id = model.unembed(hidden_BTD[0, -1]).argmax().item()
            if next_id == end_of_text:
                break
            ids.append(next_id)
    return ids[len(prompt_ids) :]
