"""How long a run will take, said before it starts."""

import dataclasses
import gc

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import PRESETS
from run.console import duration_line, in_words
from training import device as device_module
from training import duration
from training.duration import mean_seconds, random_model, random_tokens, seconds_of_phases, seconds_per_pass
from training.flops import network_flops, step_flops
from training.machine import Machine
from training.plan import make_plan
from training.step import prepare_training, train_step

CPU, TINY = torch.device("cpu"), PRESETS["tiny"]
SECONDS_PER_FLOP = {False: 1e-9, True: 3e-9}  # of dense models and of mixtures


@pytest.fixture
def plan(monkeypatch):
    """Of `tiny` on a device that computes at known rates."""

    def of_step(geometry, config, machine, is_lean):
        assert (geometry.vocab_size, machine.device, is_lean) == (4_097, CPU, False)
        return SECONDS_PER_FLOP[geometry.is_moe] * step_flops(geometry, config.batch_size)

    monkeypatch.setattr(duration, "seconds_per_step", of_step)
    return make_plan(TINY, TINY.dense_geometry(4_097), Machine(CPU))


def test_each_phase_takes_its_steps_and_its_heldout_losses(plan):
    """Of 200 steps after each 40 but the last; one at the end, and two at the boundary before."""
    for n_batches in (4, 16):
        config = dataclasses.replace(TINY, eval_batches=n_batches)
        found = seconds_of_phases(plan, config, [200, 120, 60])
        for seconds, n_steps, n_losses, model in zip(found, (200, 120, 60), (5, 2 + 3, 1 + 3), plan.models):
            flops = n_steps * step_flops(model, 8) + n_losses * n_batches * network_flops(model, 8) / 3
            assert seconds == pytest.approx(flops * SECONDS_PER_FLOP[model.is_moe])


def flops_of(call) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("change", [{}, {"accumulate": 2}, {"memory": "lean"}], ids=str)
@pytest.mark.parametrize("phase", [1, 2, 3])
def test_what_is_timed_of_one_layer_is_what_a_whole_step_computes(phase, change, monkeypatch):
    """By a clock that counts products in place of seconds."""
    config = dataclasses.replace(TINY, batch_size=4, d_model=32, n_heads=2, **change)
    model, is_lean = config.phase_geometries(97)[phase - 1], config.memory == "lean"
    whole = random_model(model, CPU)
    optimizers = prepare_training(whole, config, None, is_lean)
    tokens = random_tokens(model, config.batch_size, CPU)
    expected = flops_of(lambda: train_step(whole, optimizers, tokens, 0.01, config))
    monkeypatch.setattr(duration, "seconds_of", flops_of)
    assert duration.seconds_per_step(model, config, Machine(CPU), is_lean) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("is_lean", [False, True])
def test_what_was_timed_is_freed(is_lean):
    """With lean memory hooks tie parameters to their optimizer where Python's garbage collection does not see it."""

    def parameters_alive() -> list[torch.nn.Parameter]:
        gc.collect()
        return [thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter]

    config = dataclasses.replace(TINY, batch_size=1, d_model=8, n_heads=1)
    before = len(parameters_alive())
    for model in config.phase_geometries(97):
        duration.seconds_per_step(model, config, Machine(CPU), is_lean)
    assert len(parameters_alive()) <= before


def test_a_timing_has_whole_rounds_of_turns_and_leaves_out_the_first(monkeypatch):
    taken = []

    def clock(seconds):
        monkeypatch.setattr(duration, "seconds_of", lambda call: taken.append(next(seconds)) or taken[-1])

    clock(iter([1.9, *[0.1, 0.3] * 9]))  # compiles, then every other step moves matrices
    assert mean_seconds(None, n_turns=2) == pytest.approx(0.2) and len(taken) == 1 + 4
    clock(iter([0.0, *[0.01, 0.03] * 3, 1e9]))  # a device that needs hardly any time
    assert mean_seconds(None, n_turns=2) == pytest.approx(0.02)
    clock(iter([100.0, 300.0, 1e9]))  # a device on which one call takes long
    assert mean_seconds(None, n_turns=2) == 200.0
    clock(iter([100.0, 1e9]))
    assert mean_seconds(None, n_turns=1) == 100.0


def test_a_run_that_goes_on_is_told_of_what_is_left(plan):
    left = sum(seconds_of_phases(plan, TINY, [0, TINY.steps_phase2 - 20, TINY.steps_phase3]))
    line = duration_line(plan, TINY, begins_with=2, step=20)
    assert f"About {in_words(left)} of training" in line and "phase 1" not in line and "phase 2" in line
    assert duration_line(plan, TINY, begins_with=4) == "All of its steps are trained"


def test_the_precision_is_told_with_the_time(plan):
    assert "of training in fp32," in duration_line(plan, TINY, begins_with=1)
    lower = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, compute_dtype=torch.bfloat16))
    assert "of training in bf16," in duration_line(lower, TINY, begins_with=1)


@pytest.mark.parametrize(
    "precision, speedup, expected",
    [("auto", 1.3, torch.bfloat16), ("auto", 1.1, None), ("fp32", 9.0, None), ("bf16", 0.1, torch.bfloat16)],
)
def test_a_plan_has_the_precision_that_a_run_would_choose(precision, speedup, expected, monkeypatch):
    monkeypatch.setattr(device_module, "speedup_of_bf16", lambda device, config: speedup)
    config = dataclasses.replace(TINY, precision=precision)
    assert device_module.probable_precision(CPU, config) == expected


def test_times_are_told_in_the_unit_that_people_plan_by():
    assert [in_words(s) for s in (0.4, 89, 91, 5000, 12_600)] == ["under 1 s", "89 s", "2 min", "83 min", "3.5 h"]


def test_a_pass_of_a_model_with_more_to_compute_takes_longer():
    small, large = (dataclasses.replace(TINY.dense_geometry(64), d_model=width, n_heads=2) for width in (16, 512))
    seconds = [seconds_per_pass(geometry, 2, CPU, None) for geometry in (small, large)]
    assert 0 < seconds[0] < seconds[1]
