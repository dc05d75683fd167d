"""Whether growth is expected to pay: counted against the study's two pairs of sizes, and said before a run starts."""

import dataclasses

import pytest
import torch

from benchmarks.growth_study.arms import MIDDLE, TARGET
from config import PRESETS
from models import count_parameters
from training.flops import step_flops
from training.machine import Machine
from training.outlook import ENOUGH_TOKENS, growth_outlook, tokens_from_scratch
from training.plan import make_plan

TINY = PRESETS["tiny"]


def plan_of(config):
    return make_plan(config, config.dense_geometry(4_097), Machine(torch.device("cpu")))


def test_every_phase_is_charged():
    """At equal FLOPs a step of the last model counts once, and one of a cheaper model less."""
    config = dataclasses.replace(TINY, steps_phase1=0, steps_phase2=0, steps_phase3=7)
    tokens = TINY.batch_size * TINY.context_length
    assert tokens_from_scratch(plan_of(config), config) == pytest.approx(7 * tokens)
    config = dataclasses.replace(config, steps_phase1=5)
    first, _, last = (step_flops(model, TINY.batch_size) for model in plan_of(config).models)
    assert tokens_from_scratch(plan_of(config), config) == pytest.approx((7 + 5 * first / last) * tokens)


@pytest.mark.parametrize("share, first", [(0.5, "phase 2's model"), (2, "phase 3 ")])
def test_what_is_expected_turns_where_the_sizes_crossed(share, first):
    plan = plan_of(TINY)
    large = plan.models[-1]
    n_steps = share * ENOUGH_TOKENS * count_parameters(large).active / TINY.batch_size / TINY.context_length
    config = dataclasses.replace(TINY, steps_phase1=0, steps_phase2=0, steps_phase3=round(n_steps))
    outlook = growth_outlook(plan, config)
    assert f"would see {share * ENOUGH_TOKENS:.2g} tokens per active parameter" in outlook
    assert f"Expect {first}" in outlook


def test_nothing_is_said_where_nothing_grows():
    config = dataclasses.replace(TINY, scale_factor=1.0, extra_layers=0)
    assert growth_outlook(plan_of(config), config) == ""


def test_the_study_s_target_crossed_the_middle_size_there():
    """docs/GROWTH_STUDY.md: between 48 and 96 TFLOP."""
    tokens = [budget / step_flops(TARGET, 8) * 8 * TARGET.context_length for budget in (48e12, 96e12)]
    shares = [n / count_parameters(TARGET).active for n in tokens]
    assert shares[0] < ENOUGH_TOKENS < shares[1]
    assert step_flops(MIDDLE, 8) < step_flops(TARGET, 8) / 4


def test_the_middle_size_crossed_the_small_one_there():
    """Between 3 and 4 TFLOP, benchmarks/results/early_growth.json."""
    tokens = [budget / step_flops(MIDDLE, 8) * 8 * MIDDLE.context_length for budget in (3e12, 4e12)]
    shares = [n / count_parameters(MIDDLE).active for n in tokens]
    assert shares[0] < ENOUGH_TOKENS < shares[1]
