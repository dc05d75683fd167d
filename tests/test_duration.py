"""How long a run will take, said before it starts."""

import dataclasses

import pytest
import torch

from config import PRESETS
from run.console import duration_line, in_words
from training import duration
from training.duration import seconds_of_phases, seconds_per_pass
from training.flops import blocks_flops, network_flops, step_flops
from training.machine import Machine
from training.plan import make_plan

TINY = PRESETS["tiny"]
SECONDS_PER_FLOP = {False: 1e-9, True: 3e-9}  # of dense models and of mixtures


@pytest.fixture
def plan(monkeypatch):
    """Of `tiny` on a device that computes at known rates."""

    def timed(geometry, batch_size, device, compute_dtype):
        assert (geometry.n_layers, geometry.vocab_size, geometry.context_length) == (1, 4_097, TINY.context_length)
        return SECONDS_PER_FLOP[geometry.is_moe] * network_flops(geometry, batch_size)

    monkeypatch.setattr(duration, "seconds_per_pass", timed)
    return make_plan(TINY, TINY.dense_geometry(4_097), Machine(torch.device("cpu")))


def test_each_phase_takes_its_steps_at_the_rate_of_its_kind(plan):
    seconds = seconds_of_phases(plan, TINY, [200, 120, 60])
    for found, n_steps, model in zip(seconds, (200, 120, 60), plan.models):
        assert found == pytest.approx(n_steps * step_flops(model, TINY.batch_size) * SECONDS_PER_FLOP[model.is_moe])


def test_parts_of_a_batch_are_timed_as_parts(plan):
    """Of a mixture of experts with the pass that counts the choices of all parts first."""
    whole = seconds_of_phases(plan, TINY, [1, 1, 1])
    counting = [0.0, *(SECONDS_PER_FLOP[True] * blocks_flops(model, TINY.batch_size) for model in plan.models[1:])]
    expected = [seconds + more for seconds, more in zip(whole, counting)]
    assert seconds_of_phases(plan, dataclasses.replace(TINY, accumulate=4), [1, 1, 1]) == pytest.approx(expected)


def test_a_run_that_goes_on_is_told_of_what_is_left(plan):
    left = sum(seconds_of_phases(plan, TINY, [0, TINY.steps_phase2 - 20, TINY.steps_phase3]))
    line = duration_line(plan, TINY, begins_with=2, step=20)
    assert f"About {in_words(left)} of training" in line and "phase 1" not in line and "phase 2" in line
    assert "About 0 s" in duration_line(plan, TINY, begins_with=4)


def test_a_phase_that_has_outlasted_its_steps_takes_no_time_back(plan):
    """With --grow-when auto a phase may last four times its steps."""
    left = sum(seconds_of_phases(plan, TINY, [0, 0, TINY.steps_phase3]))
    line = duration_line(plan, TINY, begins_with=2, step=3 * TINY.steps_phase2)
    assert f"About {in_words(left)} of training" in line and "phase 2" not in line and "-" not in line


def test_the_precision_is_told_with_the_time(plan):
    assert "of training in fp32," in duration_line(plan, TINY, begins_with=1)
    lower = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, compute_dtype=torch.bfloat16))
    assert "of training in bf16," in duration_line(lower, TINY, begins_with=1)


def test_times_are_told_in_the_unit_that_people_plan_by():
    assert [in_words(s) for s in (0.4, 89, 91, 5000, 12_600)] == ["0 s", "89 s", "2 min", "83 min", "3.5 h"]


def test_a_pass_of_a_model_with_more_to_compute_takes_longer():
    small, large = (dataclasses.replace(TINY.dense_geometry(64), d_model=width, n_heads=2) for width in (16, 512))
    seconds = [seconds_per_pass(geometry, 2, torch.device("cpu"), None) for geometry in (small, large)]
    assert 0 < seconds[0] < seconds[1]
