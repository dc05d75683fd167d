"""Batches as pure functions of the tokens, the seed and the step.

A window is context_length + 1 tokens: inputs are all but its last, targets all but its
first. Training windows follow each other at a stride of context_length, so that every
token is a target once per epoch, but for the few before and after the windows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from config import UserError


def windows_per_epoch(n_tokens: int, context_length: int) -> int:
    """Training windows that fit behind the latest possible start offset of an epoch."""
    return max(n_tokens // context_length - 1, 0)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _epoch_starts(n_tokens: int, context_length: int, seed: int, epoch: int, shard: int | None) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)))
    offset = generator.integers(context_length)
    n_windows = windows_per_epoch(n_tokens, context_length)
    shard = shard or n_windows
    order = [first + generator.permutation(min(shard, n_windows - first)) for first in range(0, n_windows, shard)]
    starts = offset + context_length * np.concatenate(order)
    starts.flags.writeable = False
    return starts


def _windows(tokens: np.ndarray, starts, context_length: int) -> torch.LongTensor:
    windows = np.stack([tokens[start : start + context_length + 1] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


def train_batch(
    tokens: np.ndarray, seed: int, step: int, batch_size: int, context_length: int, shard: int | None = None
) -> torch.LongTensor:
    """Batch number `step`: int64 (batch_size, context_length + 1), on the CPU.

    A pure function of its arguments. Within an epoch every window is drawn once, in an
    order and from a start offset that depend on (seed, epoch) alone. With `shard`, windows
    are shuffled within runs of so many: then more tokens at the end of `tokens`, which a longer
    run reads of a stream, do not change the batches before them.

    Raises:
        UserError: `tokens` holds fewer windows than one batch.
    """
    n_windows = windows_per_epoch(len(tokens), context_length)
    if n_windows < batch_size:
        raise UserError(
            f"the training stories have {len(tokens):,} tokens, but one batch of {batch_size} x {context_length} "
            f"needs {(batch_size + 1) * context_length:,}; give more stories or lower batch_size or context_length"
        )
    starts = []
    for sample in range(step * batch_size, (step + 1) * batch_size):
        epoch, position = divmod(sample, n_windows)
        starts.append(_epoch_starts(len(tokens), context_length, seed, epoch, shard)[position])
    return _windows(tokens, starts, context_length)


def heldout_batches(tokens: np.ndarray, n_batches: int, batch_size: int, context_length: int) -> list[torch.LongTensor]:
    """Up to `n_batches` of int64 (batch_size, context_length + 1), spread evenly over `tokens`.

    The windows do not overlap and do not depend on any seed. Where `tokens` is too short
    there are fewer batches.

    Raises:
        UserError: `tokens` is shorter than one batch.
    """
    window = context_length + 1
    n_windows = min(n_batches, len(tokens) // window // batch_size) * batch_size
    if n_windows == 0:
        raise UserError(
            f"the validation stories have {len(tokens):,} tokens, but one batch of {batch_size} x {window} needs "
            f"{batch_size * window:,}; give more with --valid-data or lower batch_size or context_length"
        )
    starts = [i * (len(tokens) - window) // max(n_windows - 1, 1) for i in range(n_windows)]
    return [
        _windows(tokens, starts[first : first + batch_size], context_length)
        for first in range(0, n_windows, batch_size)
    ]
