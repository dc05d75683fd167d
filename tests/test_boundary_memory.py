"""What a boundary takes: the old model is gone before the moments grow, these one by one; and the plan knows of it."""

import dataclasses
import gc
import weakref

import pytest
import torch

import train_tinystories
from config import PRESETS, ModelConfig, UserError
from models import count_parameters
from test_growth_checks import lively_dense_model, lively_moe_model
from tests.test_run import run
from training.machine import Machine
from training.memory import PROCESS_BYTES
from training.optimizer import build_optimizers, moment_bytes, read_moments
from training.plan import make_plan, require_memory
from transfer import optimizer_growth
from transfer.optimizer_growth import grow_optimizer_state

CPU = torch.device("cpu")
GEOMETRY = ModelConfig(vocab_size=101, d_model=32, n_layers=3, n_heads=4, context_length=16)


def test_the_old_model_is_gone_before_the_moments_grow(tmp_path, token_cache, monkeypatch):
    alive = []
    cross, grow = train_tinystories.cross_boundary, train_tinystories.grow_optimizer_state

    def watched_crossing(run, phase, old, new):
        alive.append(weakref.ref(old))
        cross(run, phase, old, new)

    def watched_growth(moments, *rest, **named):
        gc.collect()  # modules and their hooks are cycles
        assert alive[-1]() is None, "the old model is there beside the moments"
        before = len(moments)
        grown = grow(moments, *rest, **named)
        assert before and not moments and grown, "and the old moments beside the new"
        return grown

    monkeypatch.setattr(train_tinystories, "cross_boundary", watched_crossing)
    monkeypatch.setattr(train_tinystories, "grow_optimizer_state", watched_growth)
    assert run(tmp_path, token_cache, "--steps-phase1", "2", "--steps-phase2", "2", "--steps-phase3", "1") == 0
    assert len(alive) == 2


def moments_of(model):
    optimizers = build_optimizers(model, 0.1, tokens=128)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    return read_moments(model, optimizers)


def n_bytes(state) -> int:
    return sum(value.nbytes for values in state.values() for value in values.values())


@pytest.mark.parametrize("way", ["grown", "asymmetric", "fresh"])
@pytest.mark.parametrize("build, growth", [
    (lively_dense_model, lambda config: config.upcycled(8, 2)), (lively_moe_model, lambda config: config.grown(1.5, 1)),
])  # fmt: skip
def test_moments_grow_one_by_one_into_the_same(build, growth, way, monkeypatch):
    model = build(GEOMETRY)
    old, new, state = model.config, growth(model.config), moments_of(model)
    expected = grow_optimizer_state(state, old, new, way)
    assert n_bytes(state), "left as it was"
    largest_new = max((n_bytes({"": values}) for values in expected.values()), default=0)
    grown_so_far, peaks, original = [0], [], optimizer_growth.over_ranks

    def watched(moments, *rest, **named):
        result = original(moments, *rest, **named)
        grown_so_far[0] += n_bytes({"": result})
        peaks.append(grown_so_far[0] + n_bytes(state) + n_bytes({"": moments}))
        return result

    monkeypatch.setattr(optimizer_growth, "over_ranks", watched)
    total_old = n_bytes(state)
    found = grow_optimizer_state(state, old, new, way, frees=True)
    assert not n_bytes(state) and found.keys() == expected.keys()
    for name, values in expected.items():
        assert all(torch.equal(value, found[name][key]) for key, value in values.items())
    if way != "fresh":
        assert max(peaks) <= n_bytes(expected) + largest_new < n_bytes(expected) + total_old


def test_the_plan_has_a_row_for_the_larger_boundary():
    config = dataclasses.replace(PRESETS["reference"], scale_factor=1.0, extra_layers=1, batch_size=1, memory="full")
    plan = make_plan(config, config.dense_geometry(50_257), Machine(CPU, available=1e12))
    *phases, boundary = plan.memory
    assert len(phases) == 3 and boundary.into == 3
    old, new = plan.models[1:]
    both = 4 * (count_parameters(old).total + count_parameters(new).total)
    assert boundary.weights == both and boundary.optimizer == moment_bytes(old, False)
    assert boundary.peak > both + moment_bytes(old, False) + PROCESS_BYTES
    rows = plan.table().splitlines()
    assert rows[4].startswith("2→3 boundary both models") and f"{boundary.peak / 1e9:.2f} GB" in rows[4]
    assert max(map(len, rows)) <= 120


def test_a_boundary_that_will_not_fit_is_named_before_anything_is_trained():
    """Where growth adds little, both models and one's moments are more than the larger one takes to train leanly."""
    config = dataclasses.replace(PRESETS["reference"], scale_factor=1.0, extra_layers=1, batch_size=1, memory="lean")
    plan = make_plan(config, config.dense_geometry(50_257), Machine(CPU, available=1e12))
    *phases, boundary = (memory.peak for memory in plan.memory)
    assert boundary > max(phases)
    tight = make_plan(config, config.dense_geometry(50_257), Machine(CPU, available=(boundary + max(phases)) / 2))
    with pytest.raises(UserError, match="The 2→3 boundary will not fit"):
        require_memory(tight, ignore=False)


def storages() -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors by its address."""
    found = (each.untyped_storage() for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
    return {storage.data_ptr(): storage for storage in found}


def test_both_models_and_the_old_moments_are_what_a_boundary_takes(tmp_path, token_cache, monkeypatch):
    """All tensors that are alive after the checks, counted: they are the planned ones."""
    # What other tests have left is held, so that no new tensor takes its place.
    seen, before, cross = [], storages(), train_tinystories.cross_boundary

    def counting(run, phase, old, new):
        cross(run, phase, old, new)
        run.saver.wait()
        gc.collect()
        found = sum(each.nbytes() for address, each in storages().items() if address not in before)
        planned = 4 * sum(count_parameters(m.config).total for m in (old, new)) + moment_bytes(old.config, False)
        seen.append((found, planned))

    monkeypatch.setattr(train_tinystories, "cross_boundary", counting)
    wide = ["--d-model", "128", "--steps-phase1", "2", "--steps-phase2", "2", "--steps-phase3", "1", "--memory", "full"]
    assert run(tmp_path, token_cache, *wide) == 0
    assert len(seen) == 2
    for found, planned in seen:
        assert planned <= found <= 1.1 * planned, (found, planned)
