"""Growth of models with GPT-NeoX's own choices: parallel residual, partial rotary, an output matrix of its own."""

import dataclasses
import itertools

import pytest
import torch
from test_growth import TOKENS, differences, holds, measured
from test_optimizer_growth import gradients, pulled_back

from config import ModelConfig, UserError
from models import Transformer, count_parameters, load_model, next_token_loss, save_model
from test_growth_checks import lively_dense_model, lively_moe_model
from training.flops import step_flops
from training.optimizer import build_optimizers
from transfer.gradient_coverage import GradientCoverage
from transfer.growth_maps import GrowthMaps, block_origins
from transfer.liveness import liveness_report
from transfer.optimizer_growth import grown_gradient
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import (
    check_functional_identity,
    check_rope_integrity,
    check_symmetry_breaking,
    detailed_growth_check,
)

GEOMETRY = ModelConfig(vocab_size=97, d_model=32, n_layers=3, n_heads=4, context_length=24)
CHOICES = {
    f"{'parallel' if parallel else 'sequential'}, rotary {share}, {'tied' if tied else 'untied'}": dataclasses.replace(
        GEOMETRY, parallel_residual=parallel, rotary_share=share, tied=tied
    )
    for parallel, share, tied in itertools.product((False, True), (1.0, 0.25), (True, False))
    if (parallel, share, tied) != (False, 1.0, True)  # ours, in tests/test_growth.py
}
PYTHIA = CHOICES["parallel, rotary 0.25, untied"]
KINDS = {"dense": lively_dense_model, "moe": lively_moe_model}
BATTERY = [(1, 4, 0), (1.5, 0, 1.0), (1.5, 4, 1.0), (2, 0, 0), (2, 1, 1.0), (3, 4, 1.0)]


def read_as(model: Transformer, **changes) -> Transformer:
    """The same weights under another geometry."""
    other = Transformer.empty(dataclasses.replace(model.config, **changes))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", CHOICES)
def test_growth_keeps_the_function(choice, kind, dtype):
    old = KINDS[kind](CHOICES[choice]).to(dtype)
    before = measured(old)
    for factor, extra, noise in BATTERY:
        new = scale_bilaterally(old, factor, extra, noise)
        found = differences(before, new, block_origins(3, extra))
        assert holds(found, dtype), (factor, extra, noise, found)


@pytest.mark.parametrize("choice", CHOICES)
def test_upcycling_keeps_the_function_and_growth_twice_in_a_row(choice):
    dense = lively_dense_model(CHOICES[choice]).double()
    moe = upcycle_to_moe(dense, n_experts=5, top_k=3)
    again = scale_bilaterally(scale_bilaterally(moe, 1.5, 1, 1.0), 1.5, 5, 1.0)
    for new in (moe, again):
        assert differences(measured(dense), new, origins=[]).logits <= 1e-9


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_sound_growth_passes_every_check(choice, factor):
    old = lively_moe_model(CHOICES[choice])
    assert all(detailed_growth_check(old, scale_bilaterally(old, factor, 2)).values())


# --- what the battery and the checks must catch


@pytest.mark.parametrize(
    "changes", [{"parallel_residual": False}, {"rotary_share": 1.0}, {"rotary_share": 0.5}], ids=str
)
def test_a_model_that_is_read_in_another_way_is_caught(changes):
    old = lively_dense_model(PYTHIA)
    wrong = read_as(scale_bilaterally(old, 2, 1), **changes)
    found = differences(measured(old), wrong, block_origins(3, 1))
    assert not holds(found, torch.float32)
    assert not check_functional_identity(old, wrong)
    assert bool(check_rope_integrity(old, wrong)) == ("parallel_residual" in changes)


def test_an_output_matrix_that_is_not_divided_is_caught():
    old = lively_dense_model(PYTHIA)
    wrong = scale_bilaterally(old, 2, 1)
    with torch.no_grad():
        wrong.unembedding.weight *= 2
    assert "first in logits" in check_functional_identity(old, wrong).reason


def test_an_output_matrix_without_noise_locks_the_last_block():
    """Nothing else reads what the last block writes; of a parallel one neither does its own MLP."""
    old = lively_dense_model(PYTHIA)
    new, silent = (scale_bilaterally(old, 2, 0, noise) for noise in (1.0, 0.0))
    assert check_symmetry_breaking(old, new)
    with torch.no_grad():
        new.unembedding.weight.copy_(silent.unembedding.weight)
    result = check_symmetry_breaking(old, new)
    assert not result and "residual features in block 2" in result.reason


def test_a_model_with_another_output_matrix_is_no_growth():
    with pytest.raises(UserError, match="tied differ"):
        GrowthMaps.between(PYTHIA, dataclasses.replace(PYTHIA, tied=True))


# --- gradients and the optimizer


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_travel_through_the_maps(choice, factor):
    old = lively_dense_model(CHOICES[choice]).double()
    new = scale_bilaterally(old, factor, 0, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    g_old, g_new = gradients(old, TOKENS), gradients(new, TOKENS)
    for name, g in g_old.items():
        torch.testing.assert_close(pulled_back(name, g.shape, maps, g_new[name]), g, rtol=1e-9, atol=1e-12)
        mapped = grown_gradient(name, g, maps)
        if factor % 1 and maps.axes(name)[0] is maps.residual:
            # The part that moves tiles against fillings is unknown to the old model: compare without it.
            mapped = pulled_back(name, g.shape, maps, mapped)
            torch.testing.assert_close(mapped, g, rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(mapped, g_new[name], rtol=1e-9, atol=1e-12)


def test_the_loss_of_an_untied_model_is_plain_cross_entropy_and_moves_both_matrices():
    model = lively_moe_model(PYTHIA)
    plain = torch.nn.functional.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
    loss, _ = next_token_loss(model, TOKENS)
    torch.testing.assert_close(loss, plain)
    expected = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected)
    assert model.embedding.weight.shape == model.unembedding.weight.shape
    assert not torch.equal(model.embedding.weight, model.unembedding.weight)


def test_adamw_moves_the_output_matrix_and_the_embedding_apart():
    model = lively_dense_model(PYTHIA)
    muon, adamw = build_optimizers(model, weight_decay=0.1, tokens=128)
    ((outputs,), (inputs,)) = (group["params"] for group in adamw.param_groups[:2])
    assert outputs is model.unembedding.weight and inputs is model.embedding.weight
    assert not any(p is model.unembedding.weight for group in muon.param_groups for p in group["params"])


def test_an_output_matrix_of_its_own_costs_no_flops_more_and_counts_as_parameters():
    tied = dataclasses.replace(PYTHIA, tied=True)
    assert step_flops(PYTHIA, 8) == step_flops(tied, 8)
    assert count_parameters(PYTHIA).total - count_parameters(tied).total == 97 * 32


def test_liveness_watches_the_output_matrix():
    old = lively_moe_model(PYTHIA)
    new = scale_bilaterally(old, 2, 1)
    coverage = GradientCoverage(new, old.config)
    next_token_loss(new, TOKENS)[0].backward()
    coverage.steps = 1
    report = liveness_report(new, old.config, TOKENS, coverage)
    # Of the embedding a batch touches the rows of its tokens; of the output matrix, all.
    seen = TOKENS[:, :-1].unique().numel() / 97
    assert report.never_touched_by_module["embedding"] == pytest.approx((1 - seen) / 2)


# --- files and geometries


def test_a_model_survives_the_disk(tmp_path):
    model = lively_moe_model(PYTHIA)
    save_model(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert again.config == PYTHIA.upcycled(8, 2) and torch.equal(again(TOKENS[:, :-1]), model(TOKENS[:, :-1]))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.25, 0.125, float("nan")])
def test_shares_that_turn_no_whole_pairs_are_refused(share):
    with pytest.raises(UserError, match="rotary_share"):
        dataclasses.replace(GEOMETRY, rotary_share=share)
