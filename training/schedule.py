"""Learning rate over one phase."""

from __future__ import annotations

import math

DECAY_SHARE = 0.6


def learning_rate(step: int, steps: int, start: float, peak: float, end: float, warmup_steps: int) -> float:
    """Linear from `start` to `peak`, constant, then linear over the last 60 % of the phase down to `end`.

    A phase starts where the one before it ended, so that the rate is continuous through a boundary:
    a grown model has as little use for a sudden full step as the old one had.

    Args:
        step: 0 to steps - 1.
        warmup_steps: cut where the phase is so short that it would fall before it has risen to its peak.
    """
    warmup_steps = min(warmup_steps, max(0, math.floor((1 - DECAY_SHARE) * steps - 1)))
    first = start + (peak - start) * min(1.0, (step + 1) / (warmup_steps + 1))
    last = end + (peak - end) * min(1.0, (steps - 1 - step) / (DECAY_SHARE * steps))
    return first if step < warmup_steps else last
