"""The loss of a model on every token of a text.

The text is cut into windows of context_length + 1 tokens, each beginning with the last token of the one before: so
every token but the first is predicted once, from the 1 to context_length tokens before it in its window. The
last window may be shorter.

Shape letters: B windows, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import Transformer, next_token_loss


class Measured(NamedTuple):
    """`loss` in nats a token, over `n_predicted` tokens; `seconds` are the model's alone."""

    loss: float
    n_predicted: int
    seconds: float


def windows(tokens: np.ndarray, context_length: int, batch_size: int) -> Iterator[Tensor]:
    """Batches int64 (B, context_length + 1), B up to `batch_size`, then what is left as (1, T)."""
    n_whole = (len(tokens) - 1) // context_length
    for first in range(0, n_whole, batch_size):
        starts = range(first * context_length, min(first + batch_size, n_whole) * context_length, context_length)
        batch = np.stack([tokens[start : start + context_length + 1] for start in starts])
        yield torch.from_numpy(batch.astype(np.int64))
    rest = tokens[n_whole * context_length :]
    if len(rest) > 1:
        yield torch.from_numpy(rest.astype(np.int64)).unsqueeze(0)


@torch.no_grad()
def measure_loss(model: Transformer, tokens: np.ndarray, batch_size: int) -> Measured:
    """Mean cross-entropy over `tokens`, at least two, in the model's present compute dtype."""
    total, n_predicted, start = 0.0, 0, time.perf_counter()
    with tqdm(total=len(tokens) - 1, unit=" tokens", disable=None, leave=False) as progress:
        for batch_BT in windows(tokens, model.config.context_length, batch_size):
            n = batch_BT.shape[0] * (batch_BT.shape[1] - 1)
            total += next_token_loss(model, batch_BT.to(model.device))[0].item() * n
            n_predicted += n
            progress.update(n)
    return Measured(total / n_predicted, n_predicted, time.perf_counter() - start)
