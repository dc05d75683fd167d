"""Whether growth is expected to pay, told before any of it is trained; after docs/GROWTH_STUDY.md.

For equal FLOPs the larger of two sizes is the better one only from so many tokens on. Growth is exact, so at the boundary
the large model has the smaller one's loss, and learns from there as a large one does: where the smaller one, trained on,
would still be ahead at the end, growth does not catch up with it.
"""

from __future__ import annotations

from config import TrainingConfig
from models import count_parameters
from training.flops import step_flops
from training.plan import Plan

# Tokens for each active parameter of the larger of two sizes, where both were equally good: 1.6 and 1.3 for two pairs.
ENOUGH_TOKENS = 1.5


def growth_outlook(plan: Plan, config: TrainingConfig) -> str:
    """Of a run that begins with phase 1; empty where its last phase makes nothing larger."""
    *_, small, large = plan.models
    if (small.d_model, small.n_layers) == (large.d_model, large.n_layers):
        return ""
    share = tokens_from_scratch(plan, config) / count_parameters(large).active
    expected = (
        "phase 3 to end better than phase 2's model trained on, and about as well as its own size from scratch"
        if share >= ENOUGH_TOKENS
        else "phase 2's model, trained on, to end better than phase 3, and phase 3 better than its own size from scratch"
    )
    return (
        f"Does growth pay? For these FLOPs phase 3's model would see {share:.2g} tokens per active parameter from scratch; "
        f"of two sizes the larger one was better from about {ENOUGH_TOKENS} on. Expect {expected} (docs/GROWTH_STUDY.md)."
    )


def tokens_from_scratch(plan: Plan, config: TrainingConfig) -> float:
    """How many tokens the last phase's model would see for the FLOPs of the whole run."""
    n_steps = (config.steps(phase) for phase in range(1, len(plan.models) + 1))
    flops = sum(n * step_flops(model, config.batch_size) for n, model in zip(n_steps, plan.models))
    return flops / step_flops(plan.models[-1], config.batch_size) * config.batch_size * config.context_length
