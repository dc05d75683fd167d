"""A step that cannot be trusted: its loss is no number, or its gradient is none or has exploded.

It changes nothing, neither weights nor moments, and the run counts it. What decides is on the device and
nobody waits for it; the host hears of it when rows are written, and stops the run after `MOST_IN_A_ROW`.
With lean memory each matrix has moved by its own gradient before that of the whole is known: there one that is
sound by itself is not held back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import TrainingConfig, UserError

# Times `grad_clip`. A clipped step is never large, but the direction of such a gradient means nothing.
EXPLODED = 1000.0
MOST_IN_A_ROW = 10


def is_sound(loss: Tensor, grad_norm: Tensor, grad_clip: float) -> Tensor:
    """Whether to take a step, bool () on the device of its loss and its gradient's norm, which are scalars."""
    return torch.isfinite(loss) & (grad_norm <= EXPLODED * grad_clip)


def require_sound_steps(in_a_row: int, phase: int, step: int, cause: str, config: TrainingConfig) -> None:
    """Raises UserError where the last `in_a_row` steps, up to `step`, have all been skipped and no more will help."""
    if in_a_row >= MOST_IN_A_ROW:
        raise UserError(
            f"phase {phase}, step {step}: {cause}, and the {in_a_row - 1} steps before it were skipped as well; the "
            f"state saved before them is whole. Go on with --resume --lr-phase{phase} {config.learning_rate(phase) / 2:g}"
        )
