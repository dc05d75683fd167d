"""Choices that rounding may turn: the definition, how they are left out, and that no fault hides behind them."""

from types import SimpleNamespace

import pytest
import torch

from config import ModelConfig
from models.generation import continuations
from run import boundary
from run.boundary import compare_stories, without_near_ties
from test_growth_checks import lively_dense_model, lively_moe_model
from tests.broken_growth import add_near_ties
from tests.sweep_growth import sweep
from training.heldout import heldout_loss
from transfer.growth_maps import block_origins
from transfer.near_ties import RouterChoices, following, near_tied, parting, rounding_parts
from transfer.probe import trace
from transfer.rounding import PRECISIONS, rms
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import (
    LARGEST_JUMP,
    check_functional_identity,
    check_router_scaling,
    detailed_growth_check,
)

GEOMETRY = ModelConfig(vocab_size=101, d_model=32, n_layers=3, n_heads=4, context_length=24)
TOKENS = torch.randint(101, (4, 25), generator=torch.Generator().manual_seed(0))
TOLERANCE = PRECISIONS[torch.float32].tolerance


# --- the definition


def test_two_logits_that_may_each_move_by_the_tolerance_may_change_places():
    logits = torch.tensor([[2.0, 1.0, 1.0 - gap, -2.0] for gap in (0.5, 0.021, 0.019, 0.0)], dtype=torch.float64)
    tolerance = 0.01 / rms(logits).item()
    assert near_tied(logits, 2, tolerance).tolist() == [False, False, True, True]
    assert not near_tied(logits, 1, tolerance).any()
    assert not near_tied(logits, 4, 1.0).any(), "where all are chosen nothing is passed over"


def test_what_moves_by_no_more_than_the_tolerance_turns_near_ties_alone():
    """The theorem of near_ties.py, by trial; the bound is reached, so it cannot be narrower."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 8, generator=generator, dtype=torch.float64)
    step = 0.05 * rms(logits)
    n_turned, widest = 0, 0.0
    for k in (1, 2, 7):
        moved = logits + step * (2 * torch.rand(logits.shape, generator=generator, dtype=torch.float64) - 1).sign()
        choices = RouterChoices(k, 0.05)
        turned = choices.compare(0, logits, moved)
        best = logits[turned].topk(k + 1).values
        widest = max(widest, ((best[:, k - 1] - best[:, k]) / step).max().item())
        n_turned += choices.n_turned
        assert choices.n_changed == 0
    assert n_turned > 1000 and 1.9 < widest <= 2


def test_a_choice_of_numbers_that_are_none_is_no_near_tie():
    logits = torch.randn(4, 8)
    assert not near_tied(logits * float("nan"), 2, 0.1).any()


# --- growth with near-ties built in


def tied_model(**more):
    """A model, and a growth of it in which a near-tie turns at the first token of a row."""
    for seed in range(20):
        old = lively_moe_model(GEOMETRY, seed)
        add_near_ties(old, TOKENS, **more)
        new = scale_bilaterally(old, 2, 2, seed=seed)
        logits = [trace(model, TOKENS).router_logits for model in (old, new)]
        if RouterChoices(2, TOLERANCE).compare(0, logits[0][0], logits[1][0])[0]:
            return old, new
    raise AssertionError("of twenty exact ties about every second one turns")


def test_a_near_tie_that_turns_is_left_out_counted_and_printed(capsys):
    old, new = tied_model()
    plain = (trace(old, TOKENS).logits - trace(new, TOKENS).logits).abs().amax(-1)
    assert plain[0].max() > 1e-3 and plain[1:].max() < 1e-5, "of the row of the token alone"
    results = detailed_growth_check(old, new, TOKENS)
    assert all(results.values())
    figures = results["functional"].figures
    assert 1 <= figures["near_ties_left_out"] <= 3 and figures["choices"] == 3 * 96 and figures["choices_changed"] == 0
    assert f"near-ties: {figures['near_ties_left_out']} of 288 choices, left out" in capsys.readouterr().out
    assert figures["largest_drift"] < TOLERANCE / 10, "everything else is compared as ever"


def test_one_near_tie_at_the_first_token_of_a_short_probe_is_no_fault():
    old, new = tied_model(places=(0,))
    assert check_functional_identity(old, new, TOKENS[:1])
    assert check_functional_identity(old, new, TOKENS[:1, :3])


@pytest.mark.parametrize("block", range(3))
def test_a_fault_behind_a_near_tie_of_the_first_token_is_seen(block):
    """That token and all that attend to it are compared, led along the old model's choice."""
    old, new = tied_model(places=(0,))
    with torch.no_grad():
        new.blocks[block_origins(3, 2).index(block)].mlp.down.weight *= 1.05
    assert not check_functional_identity(old, new, TOKENS[:1])
    assert not check_functional_identity(old, new, TOKENS[:1, :2])


def test_a_changed_choice_that_was_no_near_tie_fails_by_itself():
    """An expert that takes the place of its twin computes the same: only the choice tells."""
    old = upcycle_to_moe(lively_dense_model(GEOMETRY), 8, 2, router_std=0.2)
    new = scale_bilaterally(old, 2, 1).requires_grad_(False)
    assert check_functional_identity(old, new, TOKENS)
    new.blocks[0].mlp.router.weight[0] = new.blocks[0].mlp.router.weight[0] * -1
    result = check_functional_identity(old, new, TOKENS)
    assert not result and "choices of experts changed without a near-tie, first in block 0" in result.reason


def test_more_than_one_in_a_hundred_left_out_fails():
    old, _ = tied_model()
    with torch.no_grad():
        for block in old.blocks:
            block.mlp.router.weight[1] = block.mlp.router.weight[0]
    new = scale_bilaterally(old, 2, 0).requires_grad_(False)
    for block in new.blocks:
        block.mlp.router.weight[1] *= 1 + TOLERANCE / 10
    for check in (check_router_scaling, check_functional_identity):
        result = check(old, new, TOKENS)
        assert not result and "left out, more than 1%" in result.reason and "drift" not in result.reason.lower()


def test_nothing_is_led_once_the_comparison_is_over():
    old, new = tied_model()
    before = trace(new, TOKENS).logits
    with following(new, trace(old, TOKENS).router_logits, block_origins(3, 2), TOLERANCE) as choices:
        led = trace(new, TOKENS).logits
    assert choices.n_turned and (led - before).abs().max() > 1e-3
    assert torch.equal(trace(new, TOKENS).logits, before)


# --- stories


def test_where_stories_part():
    assert parting([1, 2], [1, 2]) is None and parting([1, 2], [1, 3]) == 1 and parting([1, 2], [1]) == 1
    assert parting([], [4]) == 0


def test_a_story_that_parts_between_two_near_tied_tokens_is_no_fault():
    model = lively_dense_model(GEOMETRY)
    text = TOKENS[0, :6].tolist()
    logits = trace(model, TOKENS[:1, :7]).logits[0, -1]
    first, second = logits.topk(2).indices
    assert not rounding_parts(model, model, [0, 1, 2], text, TOLERANCE)
    with torch.no_grad():
        hidden = model.hidden(TOKENS[:1, :6])[0][0, -1]
        # A tied embedding is read as well as written: the text must not hold the second token.
        assert second not in TOKENS[0, :6]
        model.embedding.weight[second] += (logits[first] - logits[second]) / hidden.square().sum() * hidden
    assert rounding_parts(model, model, [0, 1, 2], text, TOLERANCE)


def test_a_story_that_parts_behind_a_turned_router_is_no_fault_and_behind_a_broken_model_it_is():
    old, new = tied_model(places=(0,))
    text = TOKENS[0, :6].tolist()
    assert rounding_parts(old, new, block_origins(3, 2), text, TOLERANCE)
    with torch.no_grad():
        best = trace(new, TOKENS[:1, :7]).logits[0, -1].argmax()
        new.embedding.weight[best] *= -1
    assert not rounding_parts(old, new, block_origins(3, 2), text, TOLERANCE)


def test_stories_of_a_broken_model_are_told_from_those_that_rounding_parts():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1).requires_grad_(False)
    new.blocks[0].mlp.down.weight *= 3
    told = [continuations(model, [[1, 2, 3]], 20, -1)[0] for model in (old, new)]
    place = parting(*told)
    assert place is not None
    assert not rounding_parts(old, new, block_origins(3, 1), [1, 2, 3, *told[0][:place]], TOLERANCE)


# --- the boundary of a run


def run_with(*batches):
    return SimpleNamespace(heldout=list(batches), config=SimpleNamespace(check_tolerance=TOLERANCE))


def test_the_jump_of_a_boundary_leaves_near_ties_out_where_they_alone_make_it_too_large():
    old, new = tied_model(places=(0,))
    batches = (TOKENS, TOKENS[:2], TOKENS.flip(0))
    before, after = (heldout_loss(model, batches) for model in (old, new))
    assert abs(after - before) > LARGEST_JUMP
    led, n_near_ties = without_near_ties(run_with(*batches), old, new, after)
    assert abs(led - before) < LARGEST_JUMP / 10 and 1 <= n_near_ties <= 3, "the token is in each batch"


@pytest.mark.parametrize("factor", [1.05, 1.5])
def test_a_jump_that_is_none_of_near_ties_stays(factor):
    old, new = tied_model(places=(0,))
    with torch.no_grad():
        new.blocks[0].mlp.down.weight *= factor
    before, after = (heldout_loss(model, [TOKENS]) for model in (old, new))
    led, _ = without_near_ties(run_with(TOKENS), old, new, after)
    assert abs(led - before) > LARGEST_JUMP


def test_a_boundary_tells_a_story_that_rounding_parts_from_another_one(monkeypatch):
    old, new = tied_model(places=(0,))
    monkeypatch.setattr(boundary, "sample_prompt", lambda run: TOKENS[0, :6].tolist())
    told = {}
    monkeypatch.setattr(boundary, "continuation", lambda run, model: told[model])
    told[old] = told[new] = [1, 2, 3]
    assert compare_stories(run_with(), old, new) == (True, "the same, token for token")
    told[new] = [4, 2, 3]
    same, text = compare_stories(run_with(), old, new)
    assert same is None and text.startswith("the same up to token 0, where rounding decides")
    with torch.no_grad():
        new.embedding.weight.copy_(new.embedding.weight.flip(0))
    assert compare_stories(run_with(), old, new) == (False, "differs from token 1 on")


# --- the sweep


def test_a_small_sweep_has_no_false_alarm_and_misses_nothing():
    found = sweep(16)
    assert found["exact"] == 16 and found["with_near_ties_built_in"] == 2 and found["of_these_turned"] >= 1
    assert found["false_alarms"] == [] and found["missed"] == []
    assert all(count == 2 for count in found["broken_by_fault"].values()) and len(found["broken_by_fault"]) == 15
