"""`--grow-when auto`: when trials happen, what they decide, and that they leave the run as it was."""

import copy
import dataclasses

import pytest
import torch

from config import PRESETS
from data import load_data
from models import build_dense_model
from phases import PHASES
from run.grow_when import Trial, trial_steps, try_growth
from run.loop import phase_rates
from run.run import Run
from training.flops import step_flops
from training.machine import Machine
from training.optimizer import build_optimizers, read_moments
from training.plan import make_plan
from training.step import train_step
from transfer.upcycling import upcycle_to_moe


@pytest.fixture
def run(token_cache, tmp_path):
    config = dataclasses.replace(
        PRESETS["tiny"], data="builtin", d_model=16, n_layers=1, n_heads=2, batch_size=4, context_length=16,
        eval_batches=2, cache_dir=str(token_cache),
    )  # fmt: skip
    data = load_data(config, say=lambda _: None)
    plan = make_plan(config, config.dense_geometry(data.tokenizer.n_vocab), Machine(torch.device("cpu")))
    return Run(config, data, data.heldout_batches(), plan, tmp_path, history=None)


def trained(run, steps=240):
    model = build_dense_model(run.plan.models[0], seed=0)
    optimizers = build_optimizers(model, 0.1, tokens=4 * 16)
    for step in range(steps):
        train_step(model, optimizers, run.data.train_batch(step), 0.01, run.config)
        run.count_step(model.config)
    return model, read_moments(model, optimizers)


def test_trials_begin_at_half_a_phase_and_end_at_four_of_them():
    assert trial_steps(100) == [50, 75, 112, 169, 253, 380, 400]
    assert trial_steps(1)[-1] == 4


def test_a_trial_spends_equal_compute_on_both_and_leaves_the_run_as_it_was(run):
    model, state = trained(run)
    before = copy.deepcopy((model.state_dict(), state))
    steps, flops = run.progress.steps, run.progress.flops
    trial = try_growth(run, model, state, 0.01, lambda m: upcycle_to_moe(m, 8, 2))
    after = (model.state_dict(), state)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    for name, moments in before[1].items():
        assert all(torch.equal(state[name][key], value) for key, value in moments.items())
    assert run.progress.steps == steps
    assert run.progress.flops - flops == pytest.approx(2 * trial.flops, rel=0.1)
    assert 2 * trial.flops <= 0.1 * flops and trial.flops >= 8 * step_flops(run.plan.models[1], 4)
    assert trial.loss_as_it_is < trial.loss_before and trial.loss_grown < trial.loss_before


def test_a_growth_that_ruins_the_model_does_not_pay_and_one_that_teaches_it_does(run):
    model, state = trained(run)
    better, _ = trained(run, steps=600)

    def ruined(m):
        moe = upcycle_to_moe(m, 8, 2)
        torch.nn.init.normal_(moe.embedding.weight)
        return moe

    assert not try_growth(run, model, state, 0.01, ruined).pays
    trial = try_growth(run, model, state, 0.01, lambda m: upcycle_to_moe(better, 8, 2))
    assert trial.pays and "growing now" in trial.reason


def test_a_run_that_is_too_young_and_a_growth_that_changes_nothing_are_not_tried(run):
    model, state = trained(run, steps=20)
    assert try_growth(run, model, state, 0.01, lambda m: upcycle_to_moe(m, 8, 2)) is None
    run.plan = dataclasses.replace(run.plan, models=(run.plan.models[0],) * 3)
    run.progress.flops *= 1000
    assert try_growth(run, model, state, 0.01, copy.deepcopy) is None


def test_a_plain_copy_that_diverges_loses():
    assert Trial(1.0, 3.0, float("nan"), 2.9).pays and not Trial(1.0, 3.0, 2.9, float("nan")).pays


def test_the_reason_names_both_gains():
    trial = Trial(flops=2e12, loss_before=3.0, loss_as_it_is=2.9, loss_grown=2.95)
    assert trial.reason == "2 TFLOP more gain +0.1000 nats as it is, +0.0500 grown: not yet"


def test_a_phase_whose_end_is_open_holds_its_rate():
    config = dataclasses.replace(PRESETS["tiny"], grow_when="auto", warmup_steps=2)
    rate_at = phase_rates(config, PHASES[0], 400)
    assert rate_at(2) == rate_at(399) == config.lr_phase1
    assert phase_rates(config, PHASES[2], 100)(99) == pytest.approx(config.lr_phase3 * config.final_lr_share)
    fixed = dataclasses.replace(config, grow_when="fixed")
    assert phase_rates(fixed, PHASES[0], 400)(399) == pytest.approx(config.lr_phase1 * config.final_lr_share)
