"""The growth study's machinery: stages, shared beginnings, operators; a few steps of each."""

import dataclasses

import pytest
import torch

from benchmarks.growth_study import runs
from benchmarks.growth_study.__main__ import main
from benchmarks.growth_study.arms import MIDDLE, SMALL, SMALL_MOE, Arm, Growth
from benchmarks.growth_study.operators import OPERATORS, stacked
from benchmarks.growth_study.runs import Results, run_arm
from config import PRESETS
from data import load_data
from test_growth_checks import lively_moe_model
from training.flops import step_flops

GROWN = Arm(SMALL, (Growth(0.2, SMALL_MOE, "upcycled"), Growth(0.4, MIDDLE, "ours", falls_to=0.1, peak=0.5)))


@pytest.fixture(scope="module")
def data(token_cache):
    config = dataclasses.replace(
        PRESETS["tiny"], data="builtin", batch_size=8, context_length=128, eval_batches=2, cache_dir=str(token_cache)
    )
    return load_data(config, say=lambda _: None)


def study(arm, budgets, data, folder, seed=0):
    results = Results(folder / "results.json")
    for budget in budgets:
        run_arm("an arm", arm, seed, budget, data, data.heldout_batches(), folder / "cache", results)
    return results.rows()


def ends(rows):
    return [(row["budget"], row["loss"]) for row in rows if row["budget"]]


def test_runs_end_at_their_budgets_and_earlier_stages_are_charged(data, tmp_path):
    rows = study(GROWN, [0.008e12, 0.03e12], data, tmp_path)
    last = [row for row in rows if row["budget"]]
    assert [row["budget"] for row in last] == [0.008e12, 0.03e12]
    for row in last:
        assert row["budget"] <= row["flops"] < row["budget"] + step_flops(MIDDLE, 8)
        assert row["width"] == 64
    way = [row for row in rows if not row["budget"]]
    again = study(GROWN, [0.006e12], data, tmp_path)
    assert len([row for row in again if row["budget"]]) == 3
    assert [row for row in again if not row["budget"]] == way, "the curve of the longest run stays"
    grown = next(row for row in way if row["width"] == 64)
    assert way[0]["width"] == 32 and 0.4 * 0.03e12 <= grown["flops"] < 0.4 * 0.03e12 + step_flops(SMALL_MOE, 8)
    assert way[0]["loss"] > last[1]["loss"]


def test_a_beginning_from_disk_gives_the_same_losses(data, tmp_path):
    """The second arm takes up the first one's run just before it grew."""
    budgets = [0.008e12, 0.03e12]
    first = study(GROWN, budgets, data, tmp_path / "a")
    assert len(list((tmp_path / "a" / "cache").iterdir())) == 4
    again = study(GROWN, budgets, data, tmp_path / "a")
    assert ends(again) == ends(first) and len(ends(first)) == 2, "the same, and replaced, not added twice"
    assert ends(study(GROWN, budgets, data, tmp_path / "b")) == ends(first)


def test_equal_beginnings_have_equal_names_and_others_do_not(data):
    def key(arm, budget=1e12):
        return runs.prefix_key(arm, 0, budget, 1, data.config)

    another_way = dataclasses.replace(GROWN.growths[1], operator="naive", peak=1.0)
    assert key(GROWN) == key(dataclasses.replace(GROWN, growths=(GROWN.growths[0], another_way)))
    for field, value in (("at", 0.5), ("falls_to", 0.2)):
        later = dataclasses.replace(GROWN.growths[1], **{field: value})
        assert key(GROWN) != key(dataclasses.replace(GROWN, growths=(GROWN.growths[0], later)))
    assert key(GROWN) != key(GROWN, 2e12) and key(GROWN) != key(dataclasses.replace(GROWN, lr=0.1))


def test_rates_fall_before_growth_go_on_from_there_and_end_at_zero():
    first, second, last = runs.stages(GROWN, 100.0)
    assert [(stage.begin, stage.end) for stage in (first, second, last)] == [(0, 20), (20, 40), (40, 100)]
    assert first.rate(0, 0) == pytest.approx(1 / 21) and first.rate(19, 90) == 1, "this one does not fall"
    assert [second.rate(flops, 50) for flops in (25, 28, 34, 40)] == pytest.approx([1, 1, 0.55, 0.1])
    assert last.rate(40, 0) == pytest.approx(0.1 + 0.4 / 21), "from where the stage before ended"
    assert [last.rate(flops, 50) for flops in (60, 64, 82, 100, 101)] == pytest.approx([0.5, 0.5, 0.25, 0, 0])


def test_every_operator_fills_the_target_and_the_exact_ones_alone_keep_the_function():
    small = lively_moe_model(dataclasses.replace(SMALL, vocab_size=97))
    target = small.config.grown(2, 2)
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))
    deeper = small.config.grown(1, 2)
    for name, geometry, noise in (
        ("ours", target, 1.0),
        ("ours", target, 0.0),
        ("ours", deeper, 1.0),
        ("zero_copy", small.config.grown(2, 2, is_cloned=False), 1.0),
        ("naive", target, 1.0),
        ("stacked", deeper, 1.0),
    ):
        model = OPERATORS[name](small, geometry, noise, seed=0)
        assert model.config == geometry and all(p.isfinite().all() for p in model.parameters())
        drift = (model(tokens) - small(tokens)).abs().max().item()
        assert drift < 1e-4 if name in ("ours", "zero_copy") else drift > 1e-2, (name, drift)
    deep = stacked(small, deeper, 0.0, seed=0)
    assert torch.equal(deep.blocks[3].mlp.up.weight, small.blocks[1].mlp.up.weight)


@pytest.mark.parametrize("flags, text", [("--arms nope", "unknown arm 'nope'"), ("--arms ours", "data is 'x'")])
def test_unknown_arms_and_missing_stories_are_refused_in_one_line(flags, text, capsys, tmp_path):
    given = ["--data", "x", "--valid-data", "y", "--out", str(tmp_path / "r.json"), *flags.split()]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
