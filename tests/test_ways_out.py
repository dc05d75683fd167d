"""What a run that does not fit is told to change: in the order of what it costs its user, and so that it fits."""

import dataclasses
import re
import shlex

import pytest
import torch

from benchmarks.machines import DEVICES, machine_of, outcome
from config import PRESETS, TrainingConfig
from run.cli import parse_config
from training.machine import GB, Machine
from training.plan import changed_run, make_plan, ways_out

CPU, TINY = torch.device("cpu"), PRESETS["tiny"]
REFERENCE = TrainingConfig()
# What the default command does on each machine.
GROW_LESS, KEEP_WIDTH = "--scale-factor 1.5 --extra-layers 2", "--scale-factor 1.0 --extra-layers 1"
EXPECTED = {
    "Mac, 8 GB": f"refused: {KEEP_WIDTH}",
    "Mac, 16 GB": "lean",
    "Mac, 24 GB": "lean",
    "Mac, 24 GB, newer system": "lean",
    "Mac, 32 GB": "lean",
    "Mac, 36 GB": "full",
    "Mac, 48 GB": "full",
    "Mac, 64 GB": "full",
    "GPU, 8 GB": f"refused: {GROW_LESS}",
    "GPU, 12 GB": "lean",
    "GPU, 16 GB": "lean",
    "GPU, 24 GB": "lean",
    "GPU, 32 GB": "full",
    "GPU, 48 GB": "full",
    "GPU, 80 GB": "full",
}


def test_what_the_default_command_does_on_the_machines_that_people_have():
    assert {device.name: outcome(device) for device in DEVICES} == EXPECTED


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_what_is_proposed_is_a_command_that_fits(device):
    """Given as it is printed: the plan of that run has nothing more to say."""
    kind, _, flags = outcome(device).partition(": ")
    config = parse_config(["--preset", "reference", "--device", "cpu", *shlex.split(flags)])[0]
    plan = make_plan(config, config.dense_geometry(50_257), machine_of(device))
    assert (not plan.advice) == (kind in ("full", "lean") or bool(flags))


def plan_in(gigabytes: float, config=REFERENCE, beyond=0.0, may_change=lambda name: True):
    machine = Machine(CPU, torch.bfloat16, available=gigabytes * GB, beyond=beyond * GB)
    return make_plan(config, config.dense_geometry(50_257), machine, may_change)


def need(config=REFERENCE, **changes) -> float:
    """GB at the peak, in a memory mode that is given."""
    return plan_in(0.0, dataclasses.replace(config, **changes)).peak / GB


def proposed(plan) -> str:
    return re.search(r"(--[^;]*?) needs", plan.advice)[1]


def test_ways_out_come_in_the_order_of_what_they_cost():
    """Each step of the way a little less memory than the way before it needs; at a context at which activations are more
    than what a boundary takes whatever the batch."""
    lean = dataclasses.replace(REFERENCE, memory="lean", context_length=1024)
    just_less = 1 - 1e-6
    full = dataclasses.replace(REFERENCE, memory="full")
    assert proposed(plan_in(need(full) * just_less, full)) == "--memory lean"
    growth = {"scale_factor": 1.5, "extra_layers": 2}
    steps = [
        ({}, "--batch-size 4"),
        ({"batch_size": 4}, "--batch-size 2"),
        ({"batch_size": 2}, "--batch-size 1"),
        ({"batch_size": 1}, "--scale-factor 1.5 --extra-layers 2"),
        (growth, "--batch-size 4 --scale-factor 1.5 --extra-layers 2"),
        ({**growth, "batch_size": 1}, "--scale-factor 1.0 --extra-layers 1"),
        ({"scale_factor": 1.0, "extra_layers": 1, "batch_size": 1}, "--d-model 208"),
        ({"d_model": 208}, "--preset tiny"),
    ]
    for change, expected in steps:
        plan = plan_in(need(lean, **change) * just_less, lean)
        assert proposed(plan) == expected, change
        assert "needs" in plan.advice and "it costs" in plan.advice


def test_no_way_out_changes_a_size_that_auto_would_choose_anew():
    auto, fixed = (list(ways_out(dataclasses.replace(REFERENCE, grow_when=when))) for when in ("auto", "fixed"))
    assert (
        auto == [(way, cost) for way, cost in fixed if not way.keys() & {"scale_factor", "d_model", "preset"}] != fixed
    )
    assert {"batch_size", "memory", "accumulate"} >= set().union(*(way for way, _ in auto)) != set()


def test_lean_memory_is_not_named_where_it_comes_by_itself():
    advice = plan_in(need(memory="lean") * 0.995).advice
    assert "--batch-size" in advice and "--memory" not in advice
    assert (
        "--memory lean --batch-size"
        in plan_in(need(memory="lean") * 0.995, dataclasses.replace(REFERENCE, memory="full")).advice
    )


def test_parts_of_a_batch_come_before_a_smaller_batch():
    """Where activations are most of it, and lean memory does not help: what is learnt stays the same."""
    config = dataclasses.replace(TINY, batch_size=256, memory="full")
    plan = plan_in(need(config, memory="lean") * 0.99, config)
    assert proposed(plan) == "--accumulate 8" and "nothing that is learnt" in plan.advice


def test_less_growth_is_never_more_than_the_run_has():
    config = dataclasses.replace(REFERENCE, scale_factor=1.25, extra_layers=1, n_heads=8)
    for change, _ in ways_out(config):
        changed, _ = changed_run(config, config.dense_geometry(50_257), change)
        assert changed.scale_factor <= 1.25 and changed.extra_layers <= 1 or "preset" in change


def test_what_a_run_that_goes_on_cannot_change_is_not_proposed():
    """Phase 3 has begun: its growth and its widths are done."""
    fixed = ("scale_factor", "extra_layers", "d_model", "preset")
    plan = plan_in(need(memory="lean") * 0.5, may_change=lambda name: name not in fixed)
    assert "Nothing that can be changed fits" in plan.advice
    assert "--scale-factor" in plan_in(need(memory="lean") * 0.5).advice


def test_ranks_keep_a_row_each_and_no_lean_memory():
    for change, _ in ways_out(dataclasses.replace(REFERENCE, batch_size=16), n_ranks=4):
        assert change.get("batch_size", 16) % 4 == 0 and "memory" not in change


def test_nothing_fits_is_said_as_well():
    assert "free memory" in plan_in(0.001, TINY).advice


def test_beyond_the_working_set_lean_memory_comes_first():
    full, lean = need(memory="full"), need(memory="lean")
    for available, beyond, is_lean, warned in (
        (full + 1, 0, False, False),
        (full - 1, 5, True, False),  # lean within it before full beyond it
        (lean - 1, 2, True, True),
        (lean - 1, 50, True, True),  # though full would fit into the machine
    ):
        plan = plan_in(available, beyond=beyond)
        assert (plan.is_lean, plan.is_refused, bool(plan.advice)) == (is_lean, False, warned)
    assert plan_in(lean - 3, beyond=2).is_refused
