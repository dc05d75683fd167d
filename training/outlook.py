"""Whether growth is expected to pay, told before any of it is trained; after docs/GROWTH_STUDY.md.

For equal FLOPs the larger of two sizes is the better one only from so many tokens on. Growth is exact, so at the
boundary the large model has the smaller one's loss, and learns from there as a large one does: where the smaller one,
trained on, would still be ahead at the end, growth does not catch up with it; where it would not, what it learns before
growth is worth less than it costs.
"""

from __future__ import annotations

import dataclasses

from config import ModelConfig, TrainingConfig
from models import count_parameters
from training.flops import step_flops
from training.step import counts_first

# Tokens for each active parameter of the larger of two sizes, where both were equally good: 1.6 and 1.3 for two pairs.
ENOUGH_TOKENS = 1.5
# Of phase 1's rate, for a whole life in one phase: 0.04 with the presets', as in the study. At 0.05 it ended 0.015 worse.
LIFELONG_SHARE = 0.8


def settle_growth(config: TrainingConfig, dense: ModelConfig) -> tuple[TrainingConfig, str]:
    """The settings with which a run that begins with the model `dense` trains, and what is said of its growth.

    With `grow_when = "auto"` the FLOPs that the given steps cost are given to the size that they suit, from its first
    step: phase 3 has phase 2's size or its own, without what phases 1 and 2 would have learnt, and a rate near phase 1's.
    Otherwise the settings are as they were.
    Nothing is said, or changed, where phase 3 has no steps or makes nothing larger, nor of a run whose first model may
    have seen more than this run knows of.
    """
    models = config.geometries_from(dense)
    *_, small, large = models
    is_larger = (small.d_model, small.n_layers) != (large.d_model, large.n_layers)
    if not is_larger or not config.steps_phase3 or config.start_phase > 1:
        return config, ""
    share = tokens_from_scratch(models, config) / count_parameters(large).active
    pays = share >= ENOUGH_TOKENS
    times = "" if pays else f", which takes {figure(ENOUGH_TOKENS / share)} times as many steps"
    reason = (
        f"Does growth pay? For these FLOPs phase 3's model would see {figure(share)} tokens per active parameter from "
        f"scratch; of two sizes the larger one was better from about {ENOUGH_TOKENS} on{times} (docs/GROWTH_STUDY.md)."
    )
    if config.grow_when == "auto":
        settled = of_one_size(config, large if pays else small, flops_of(models, config))
        return settled, (
            f"{reason} So nothing grows: all FLOPs go to phase {3 if pays else 2}'s size, in {settled.steps_phase3:,} "
            f"steps of phase 3, at a rate of {settled.lr_phase3:g} that falls to zero."
        )
    expected = (
        "phase 3's size from scratch to end better than phase 3, and than phase 2's size; --grow-when auto trains it"
        if pays
        else "phase 2's size to end better than phase 3, and phase 3 better than its own size from scratch; --grow-when "
        "auto trains phase 2's size alone"
    )
    return config, f"{reason} Expect {expected}."


def figure(number: float) -> str:
    """Three digits, and as many more as stand before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def of_one_size(config: TrainingConfig, size: ModelConfig, flops: float) -> TrainingConfig:
    """Settings with which phase 3 has the size of `size` from its first step, and costs `flops`; phases 1 and 2 have no steps.

    It is a model's whole life then, not a few more steps of it: its rate is near phase 1's, and falls to zero. A Llama has
    the hidden units that a dense one of its width begins with, not those of a grown one.
    """
    whole = dataclasses.replace(
        config, d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads, scale_factor=1.0, extra_layers=0,
        steps_phase1=0, steps_phase2=0, lr_phase3=LIFELONG_SHARE * config.lr_phase1, final_lr_share=0.0,
    )  # fmt: skip
    *_, cost = step_costs(whole.phase_geometries(size.vocab_size), whole)
    return dataclasses.replace(whole, steps_phase3=max(1, round(flops / cost)))


def tokens_from_scratch(models: tuple[ModelConfig, ...], config: TrainingConfig) -> float:
    """How many tokens the last phase's model would see for the FLOPs of the whole run."""
    n_steps = flops_of(models, config) / step_costs(models, config)[-1]
    return n_steps * config.batch_size * config.context_length


def flops_of(models: tuple[ModelConfig, ...], config: TrainingConfig) -> float:
    """Of all steps of all phases."""
    return sum(config.steps(phase) * cost for phase, cost in enumerate(step_costs(models, config), 1))


def step_costs(models: tuple[ModelConfig, ...], config: TrainingConfig) -> list[float]:
    """FLOPs of one step of each phase."""
    return [step_flops(model, config.batch_size, counts_first(model, config)) for model in models]
