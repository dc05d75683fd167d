"""Whether growth is expected to pay: counted against the study's two pairs of sizes, and said before a run starts."""

import dataclasses

import pytest

from benchmarks.growth_study.arms import MIDDLE, TARGET, arm_of
from config import PRESETS
from models import count_parameters
from training.flops import step_flops
from training.outlook import ENOUGH_TOKENS, flops_of, settle_growth, step_costs, tokens_from_scratch

TINY = PRESETS["tiny"]


DENSE = TINY.dense_geometry(4_097)


def with_steps(*n_steps, **settings):
    names = ("steps_phase1", "steps_phase2", "steps_phase3")
    return dataclasses.replace(TINY, **dict(zip(names, n_steps)), **settings)


def steps_for(share):
    """Of phase 3, with which its model sees `share` of the tokens that are enough."""
    large = TINY.geometries_from(DENSE)[-1]
    tokens = share * ENOUGH_TOKENS * count_parameters(large).active
    return round(tokens / TINY.batch_size / TINY.context_length)


def test_every_phase_is_charged():
    """At equal FLOPs a step of the last model counts once, and one of a cheaper model less."""
    models, tokens = TINY.geometries_from(DENSE), TINY.batch_size * TINY.context_length
    assert tokens_from_scratch(models, with_steps(0, 0, 7)) == pytest.approx(7 * tokens)
    first, _, last = (step_flops(model, TINY.batch_size) for model in models)
    assert tokens_from_scratch(models, with_steps(5, 0, 7)) == pytest.approx((7 + 5 * first / last) * tokens)


@pytest.mark.parametrize(
    "share, expected",
    [(0.5, "phase 2's size to end better than phase 3,"), (2, "phase 3's size from scratch to end better")],
)
def test_what_is_expected_turns_where_the_sizes_crossed_and_changes_nothing(share, expected):
    config = with_steps(0, 0, steps_for(share))
    settled, outlook = settle_growth(config, DENSE)
    assert settled == config
    assert f"would see {share * ENOUGH_TOKENS:.2g} tokens per active parameter" in outlook
    assert f"Expect {expected}" in outlook


@pytest.mark.parametrize("architecture", ["neox", "llama"])
@pytest.mark.parametrize("share, phase, size", [(0.2, 2, (128, 4, 4)), (1.0, 3, (256, 6, 8))])
def test_auto_gives_the_flops_to_the_size_that_they_suit(share, phase, size, architecture):
    n = steps_for(share)
    config = with_steps(n, n, n, grow_when="auto", architecture=architecture, lr_phase1=0.07)
    dense = config.dense_geometry(4_097)
    settled, outlook = settle_growth(config, dense)
    settled.validate()
    models = settled.phase_geometries(4_097)
    assert [model.is_moe for model in models] == [False, True, True]
    assert {(model.d_model, model.n_layers, model.n_heads) for model in models} == {size}
    assert settled.lr_phase3 == pytest.approx(0.056) and settled.final_lr_share == 0
    assert (settled.steps_phase1, settled.steps_phase2) == (0, 0)
    flops, cost = flops_of(config.geometries_from(dense), config), step_costs(models, config)[-1]
    assert abs(settled.steps_phase3 * cost - flops) <= cost / 2
    said = (
        f"to phase {phase}'s size, in {settled.steps_phase3:,} steps of phase 3, at a rate of 0.056 that falls to zero"
    )
    assert f"So nothing grows: all FLOPs go {said}" in outlook


def test_steps_in_parts_cost_what_they_count_first():
    models = TINY.geometries_from(DENSE)
    whole, parts = (step_costs(models, dataclasses.replace(TINY, accumulate=n)) for n in (1, 2))
    assert parts[0] == whole[0] and parts[1] > whole[1] and parts[2] > whole[2]


@pytest.mark.parametrize("grow_when", ["fixed", "auto"])
@pytest.mark.parametrize("change", [{"scale_factor": 1.0, "extra_layers": 0}, {"steps_phase3": 0}, {"start_phase": 2}])
def test_nothing_is_said_where_nothing_grows_or_is_known(change, grow_when):
    config = dataclasses.replace(TINY, grow_when=grow_when, **change)
    assert settle_growth(config, DENSE) == (config, "")


def test_the_study_s_target_crossed_the_middle_size_there():
    """docs/GROWTH_STUDY.md: between 48 and 96 TFLOP."""
    tokens = [budget / step_flops(TARGET, 8) * 8 * TARGET.context_length for budget in (48e12, 96e12)]
    shares = [n / count_parameters(TARGET).active for n in tokens]
    assert shares[0] < ENOUGH_TOKENS < shares[1]
    assert step_flops(MIDDLE, 8) < step_flops(TARGET, 8) / 4


def test_the_middle_size_crossed_the_small_one_there():
    """Between 3 and 4 TFLOP, benchmarks/results/growth_study.json."""
    tokens = [budget / step_flops(MIDDLE, 8) * 8 * MIDDLE.context_length for budget in (3e12, 4e12)]
    shares = [n / count_parameters(MIDDLE).active for n in tokens]
    assert shares[0] < ENOUGH_TOKENS < shares[1]


@pytest.mark.parametrize("budget, size", [(6e12, MIDDLE), (48e12, MIDDLE), (96e12, TARGET)])
def test_the_study_s_arm_chooses_as_a_run_does(budget, size):
    (upcycling,) = arm_of("ours, auto", budget).growths
    assert upcycling.to == size
    n_steps = round(budget / step_flops(TARGET, 8))
    config = dataclasses.replace(
        with_steps(0, 0, n_steps), grow_when="auto", d_model=64, n_layers=4, n_heads=4, scale_factor=2.0, extra_layers=2
    )
    dense = config.dense_geometry(4_097)
    assert config.geometries_from(dense)[-1] == TARGET
    assert settle_growth(config, dense)[0].phase_geometries(4_097)[-1] == size
