"""The growth study's machinery: branches, shared beginnings, operators; a few steps of each."""

import dataclasses

import pytest
import torch

from benchmarks import growth_study
from benchmarks.growth_study import MIDDLE, SMALL, SMALL_MOE, Arm, Growth, Results, run_arm
from benchmarks.study_operators import OPERATORS, ours, predecessor, stacked
from config import PRESETS
from data import load_data
from test_growth_checks import lively_dense_model, lively_moe_model
from training.flops import step_flops

GROWN = Arm(SMALL, (Growth(0.005, SMALL_MOE, "upcycled"), Growth(0.01, MIDDLE, "ours")))


@pytest.fixture(scope="module")
def data(token_cache):
    config = dataclasses.replace(
        PRESETS["tiny"], data="builtin", batch_size=8, context_length=128, eval_batches=2, cache_dir=str(token_cache)
    )
    return load_data(config, say=lambda _: None)


def study(arm, budgets, data, folder, seed=0):
    results = Results(folder / "results.json")
    run_arm("an arm", arm, seed, budgets, data, data.heldout_batches(), folder / "cache", results)
    return results.rows()


def ends(rows):
    return [(row["budget"], row["loss"]) for row in rows if row["budget"]]


def test_branches_end_at_their_budgets_and_earlier_phases_are_charged(data, tmp_path):
    rows = study(GROWN, [0.008e12, 0.03e12], data, tmp_path)
    branches = [row for row in rows if row["budget"]]
    assert [row["budget"] for row in branches] == [0.008e12, 0.03e12]
    for row in branches:
        assert row["budget"] <= row["flops"] < row["budget"] + step_flops(MIDDLE, 8)
    assert [row["width"] for row in branches] == [32, 64]
    assert rows[0]["loss"] > branches[0]["loss"] > branches[1]["loss"]


def test_a_beginning_from_disk_gives_the_same_losses(data, tmp_path):
    """The second arm takes up the first one's run just before it grew; the branch before that is kept, too."""
    budgets = [0.008e12, 0.03e12]
    first = study(GROWN, budgets, data, tmp_path / "a")
    assert len(list((tmp_path / "a" / "cache").iterdir())) == 2
    again = study(GROWN, budgets, data, tmp_path / "a")
    assert ends(again) == ends(first) and len(ends(first)) == 2, "the same, and replaced, not added twice"
    assert ends(study(GROWN, budgets, data, tmp_path / "b")) == ends(first)


def test_rate_shares_multiply_over_growths_and_outlast_a_copy(data, monkeypatch):
    trainee = growth_study.Trainee.new(lively_moe_model(SMALL))
    for _ in range(2):
        trainee = trainee.grown(
            Growth(0.0, trainee.model.config.grown(1, 1), "ours", rewarm_steps=0, rate_share=0.5), 0
        )
    rates = []
    monkeypatch.setattr(growth_study, "train_step", lambda model, optimizers, batch, rate, config: rates.append(rate))
    trainee.copy().step(data, 0.04, None)
    assert rates == [pytest.approx(0.01)]


def test_every_operator_fills_the_target_and_ours_alone_keeps_the_function():
    small = lively_moe_model(dataclasses.replace(SMALL, vocab_size=97))
    target = small.config.grown(2, 2)
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))
    for name in ("ours", "naive", "predecessor"):
        model = OPERATORS[name](small, target, 1.0, seed=0)
        assert model.config == target and all(p.isfinite().all() for p in model.parameters())
        drift = (model(tokens) - small(tokens)).abs().max().item()
        assert (drift < 1e-4) == (name == "ours"), (name, drift)
    deep = stacked(small, small.config.grown(1, 2), 0.0, seed=0)
    assert torch.equal(deep.blocks[3].mlp.up.weight, small.blocks[1].mlp.up.weight)
    assert ours(small, target, 0.0, 0).config == predecessor(small, target, 0.0, 0).config


def test_experts_that_differ_do_so_in_whole_units_or_cancel_in_pairs():
    dense = lively_dense_model(dataclasses.replace(SMALL, vocab_size=97))
    geometry = dense.config.upcycled(8, 2)
    for block, old in zip(OPERATORS["drop_upcycled"](dense, geometry, 0.25, seed=0).blocks, dense.blocks):
        up, down = (getattr(block.mlp, name).weight != getattr(old.mlp, name).weight for name in ("up", "down"))
        assert torch.equal(up.all(2), down.all(1)) and torch.equal(up.any(2), down.any(1))
        assert (up.all(2).sum(1) == 32).all() and len(up.all(2).unique(dim=0)) == 8
    drawn = OPERATORS["drop_upcycled"](dense, geometry, 1.0, seed=0).blocks[0].mlp
    assert (drawn.up.bias == 0).all() and drawn.up.weight.std().item() == pytest.approx(
        dense.blocks[0].mlp.up.weight.std().item(), rel=0.05
    )
    for block, old in zip(OPERATORS["paired_upcycled"](dense, geometry, 0.5, seed=0).blocks, dense.blocks):
        for name in ("up", "down"):
            weight = getattr(old.mlp, name).weight
            difference = getattr(block.mlp, name).weight - weight
            assert torch.allclose(difference[::2], -difference[1::2], atol=1e-6)
            assert difference.std().item() == pytest.approx(0.5 * weight.std().item(), rel=0.05)
            assert not torch.equal(difference[0], difference[2])


@pytest.mark.parametrize("flags, text", [("--arms nope", "unknown arm 'nope'"), ("--arms ours", "data is 'x'")])
def test_unknown_arms_and_missing_stories_are_refused_in_one_line(flags, text, capsys, tmp_path):
    given = ["--data", "x", "--valid-data", "y", "--out", str(tmp_path / "r.json"), *flags.split()]
    assert growth_study.main(given) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
