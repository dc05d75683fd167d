"""Learning rate over one phase."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, final_share: float) -> float:
    """Linear warm-up to `peak`, then a cosine down to `peak * final_share` at the last step.

    Args:
        step: 0 to steps - 1.
        warmup_steps: cut to half of the phase where the phase is short.
    """
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
