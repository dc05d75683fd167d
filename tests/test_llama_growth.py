"""Growth of Llama's form: the battery of test_growth.py, and a twin of every broken growth that the checks must catch."""

import dataclasses

import pytest
import torch
from test_growth import BATTERY, KINDS, LLAMA, PROMISED, TOKENS, differences, holds, measured
from test_negative_controls import failures
from test_optimizer_growth import gradients, pulled_back

from config import UserError
from models import Transformer, count_parameters, next_token_loss
from models.shards import shared_dim
from test_growth_checks import lively_dense_model, lively_moe_model
from training.optimizer import build_optimizers, set_learning_rate
from transfer import verify_growth_mechanics
from transfer.growth_maps import ZERO, AxisMap, GrowthMaps, block_origins
from transfer.liveness import GradientCoverage, liveness_report
from transfer.optimizer_growth import grown_gradient
from transfer.probe import trace
from transfer.rounding import rms
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import (
    FUNCTION_HINT,
    ROPE_HINT,
    ROUTER_HINT,
    SYMMETRY_HINT,
    check_functional_identity,
    check_rope_integrity,
    check_symmetry_breaking,
    detailed_growth_check,
)

# With an output matrix of its own; with a key-value head for each query.
CHOICES = {
    "tied": LLAMA,
    "untied": dataclasses.replace(LLAMA, tied=False),
    "untied, unshared, scaled": dataclasses.replace(
        LLAMA, tied=False, n_heads=4, queries_per_kv=1, rope_scaling=(8.0, 1.0, 4.0, 8)
    ),
}


@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", CHOICES)
def test_growth_keeps_the_function(choice, kind, dtype):
    old = KINDS[kind](CHOICES[choice]).to(dtype)
    before = measured(old)
    for factor, extra, noise in BATTERY if choice == "tied" else BATTERY[::7]:
        new = scale_bilaterally(old, factor, extra, noise)
        assert new.config.n_kv_heads == factor * 4 and new.config.d_hidden == factor * 88
        found = differences(before, new, block_origins(3, extra))
        assert holds(found, dtype), (factor, extra, noise, found)


@pytest.mark.parametrize("choice", CHOICES)
def test_upcycling_keeps_the_function(choice):
    dense = lively_dense_model(CHOICES[choice]).double()
    moe = upcycle_to_moe(dense, n_experts=5, top_k=3)
    assert differences(measured(dense), moe, origins=[]).logits <= 1e-9
    assert all(torch.equal(expert, dense.blocks[1].mlp.up.weight) for expert in moe.blocks[1].mlp.up.weight)


def test_hidden_units_of_any_number_grow_by_any_factor():
    """Hidden units may have uneven numbers of copies: 7/4 of 90 are 157.5, and 158 units compute what 90 did."""
    old = lively_dense_model(dataclasses.replace(LLAMA, hidden_ratio=90 / 32)).double()
    new = scale_bilaterally(old, 1.75, 1)
    assert new.config.d_hidden == 158
    assert differences(measured(old), new, block_origins(3, 1)).logits <= 1e-9


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_sound_growth_passes_every_check(kind, choice, factor):
    old = KINDS[kind](CHOICES[choice])
    assert all(detailed_growth_check(old, scale_bilaterally(old, factor, 2)).values())


def test_a_factor_that_splits_a_key_value_group_is_refused_with_those_that_work():
    old = lively_dense_model(LLAMA)
    with pytest.raises(UserError, match="turns 4 key-value heads into 4.5, .* 1.25, 1.5, 1.75, 2"):
        scale_bilaterally(old, 1.125, 0)  # nine heads would be whole
    with pytest.raises(UserError, match="no multiple of the old key-value group of heads, of width 8"):
        GrowthMaps.between(LLAMA, dataclasses.replace(LLAMA, d_model=36, n_heads=9, queries_per_kv=1))
    with pytest.raises(UserError, match="architecture differ"):
        GrowthMaps.between(LLAMA, dataclasses.replace(LLAMA, architecture="neox"))


def test_features_left_over_hold_zero_and_their_gains_do_not():
    old = lively_dense_model(LLAMA)
    new, silent = (scale_bilaterally(old, 1.5, 0, noise) for noise in (1.0, 0.0))
    assert AxisMap.tiled_with_filling(4, 6, ZERO).written(torch.tensor([1.0, 2, 3, 6])).tolist() == [1, 2, 3, 6, 0, 0]
    assert not new.embedding.weight[:, 32:].any()
    assert not any(block.attention.out.weight[32:].any() for block in silent.blocks)
    assert not trace(new, TOKENS).residuals[-1][..., 32:].abs().gt(1e-5).any()
    # With a gain of zero neither the gain nor the feature behind it would ever learn.
    assert all(block.mlp_norm.weight[32:].all() for block in new.blocks) and new.final_norm.weight[32:].all()


# --- what the checks must catch


@pytest.fixture
def old() -> Transformer:
    return lively_moe_model(LLAMA)


@pytest.fixture
def grown(old) -> Transformer:
    return scale_bilaterally(old, 2, 2).requires_grad_(False)


def read_as(model: Transformer, **changes) -> Transformer:
    """The same weights under another geometry."""
    other = Transformer.empty(dataclasses.replace(model.config, **changes))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("changes", [{"rope_base": 500.0}, {"rope_scaling": (8.0, 1.0, 4.0, 8)}], ids=str)
def test_other_positions(old, grown, changes):
    broken = read_as(grown, **changes)
    result = check_rope_integrity(old, broken)
    assert not result and result.hint == ROPE_HINT and "scores drift" in result.reason
    assert "rope" in failures(old, broken)


def test_query_rows_of_heads_shifted(old, grown):
    for block in grown.blocks:
        rows = block.attention.qkv.weight.unflatten(0, (8, 4, 4))
        rows[:, :2] = rows[:, :2].roll(1, dims=2)
    result = check_rope_integrity(old, grown)
    assert not result and result.hint == ROPE_HINT


def test_key_value_groups_split(old, grown):
    """All queries have their rows, and so have the keys, but a query meets the key of another group."""
    for block in grown.blocks:
        rows = block.attention.qkv.weight.unflatten(0, (8, 4, 4))
        rows[:, 2] = rows[:, 2].roll(1, dims=0)
    assert "rope" in failures(old, grown)


def test_values_of_another_group(old, grown):
    """Scores are right: only the function tells."""
    rows = grown.blocks[2].attention.qkv.weight.unflatten(0, (8, 4, 4))
    rows[:, 3] = rows[:, 3].roll(1, dims=0)
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert "first in block 2" in check_functional_identity(old, grown).reason


def test_heads_copied_one_by_one_in_place_of_groups(old, grown):
    """The queries of a grown model tiled over its heads as if each had its own key: 0 1 2 … 0 1 2 … of another order."""
    for block in grown.blocks:
        rows = block.attention.qkv.weight.unflatten(0, (8, 4, 4))
        rows[:, :2] = rows[:, :2].transpose(0, 1).reshape(8, 2, 4, -1).clone()
    assert "rope" in failures(old, grown)


def test_router_not_divided(old, grown):
    for block in grown.blocks:
        block.mlp.router.weight *= 2
    assert failures(old, grown)["router"] == ROUTER_HINT


def test_gate_grown_as_reader_and_not_as_writer(old, grown):
    """Its columns are divided, but the second copies of hidden units have a gate that nobody copied."""
    for block in grown.blocks:
        block.mlp.up.weight[:, 0, 88:] = 0
    assert "functional" in failures(old, grown)


def test_gate_grown_as_writer_and_not_as_reader(old, grown):
    grown.blocks[0].mlp.up.weight[:, 0] *= 2
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert "first in block 0" in check_functional_identity(old, grown).reason


def test_gates_of_other_units(old, grown):
    """Gate and up are pairs: rows copied in two orders make other units."""
    grown.blocks[0].mlp.up.weight[:, 0] = grown.blocks[0].mlp.up.weight[:, 0].roll(1, dims=1)
    assert failures(old, grown) == {"functional": FUNCTION_HINT}


@pytest.mark.parametrize("noise_std", [0.0, 1e-5])
def test_noise_missing_or_inert(old, noise_std):
    assert failures(old, scale_bilaterally(old, 2, 2, noise_std=noise_std)) == {"symmetry": SYMMETRY_HINT}


def test_noise_missing_where_hidden_units_are_read(old, grown):
    silent = scale_bilaterally(old, 2, 2, noise_std=0.0)
    grown.blocks[2].mlp.down.weight.data.copy_(silent.blocks[2].mlp.down.weight)
    result = check_symmetry_breaking(old, grown)
    assert not result and "hidden units in block 2" in result.reason


def test_noise_on_the_wrong_axis(old, grown):
    weight = grown.blocks[2].mlp.up.weight
    noise = 0.5 * weight.std() * torch.randn(8, 2, 88, 64, generator=torch.Generator().manual_seed(0))
    weight += torch.cat((noise, -noise), dim=2)
    assert failures(old, grown) == {"functional": FUNCTION_HINT}


def test_tied_head_not_rescaled(old, grown):
    grown.final_norm.weight *= 2
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert "first in logits" in check_functional_identity(old, grown).reason


def test_an_output_matrix_that_is_not_divided():
    old = lively_moe_model(CHOICES["untied"])
    grown = scale_bilaterally(old, 2, 1).requires_grad_(False)
    grown.unembedding.weight *= 2
    assert "first in logits" in check_functional_identity(old, grown).reason


def test_last_block_copied_instead_of_an_identity_block(old, grown):
    origins = block_origins(3, 2)
    grown.blocks[origins.index(None)].load_state_dict(grown.blocks[origins.index(2)].state_dict())
    assert failures(old, grown) == {"functional": FUNCTION_HINT}


@pytest.mark.parametrize("norm", ["attention_norm", "mlp_norm"])
def test_rms_norm_not_rescaled(old, norm):
    grown = scale_bilaterally(old, 1.5, 0).requires_grad_(False)
    getattr(grown.blocks[1], norm).weight *= 1.5**0.5
    assert "first in block 1" in check_functional_identity(old, grown).reason


def test_rms_norm_with_the_old_epsilon():
    old = lively_dense_model(dataclasses.replace(LLAMA, norm_eps=0.1))
    grown = scale_bilaterally(old, 1.5, 0)
    assert check_functional_identity(old, grown)
    assert not check_functional_identity(old, read_as(grown, norm_eps=0.1))


def test_features_left_over_that_hold_the_mean(old):
    """Right before a LayerNorm, whose mean they do not move; the mean of squares they would."""
    grown = scale_bilaterally(old, 1.5, 0).requires_grad_(False)
    grown.embedding.weight[:, 32:] = old.embedding.weight.mean(1, keepdim=True)
    reason = check_functional_identity(old, grown).reason
    assert "first in embedding" in reason
    with torch.no_grad():
        assert (grown(TOKENS[:, :-1]) - old(TOKENS[:, :-1])).abs().max() > 1e-3


def test_a_value_that_is_no_number(old, grown):
    grown.blocks[0].mlp.down.weight[0, 0, 0] = float("nan")
    assert not check_functional_identity(old, grown)


# --- massive activations


@pytest.mark.parametrize("error, is_sound", [(1e4 * 2**-22, True), (1e4 * 2**-10, False)])
def test_what_is_large_and_goes_again_leaves_its_rounding(error, is_sound, old, monkeypatch):
    """Trained models write thousands to a few features and take them away in a late block: as if these did."""
    grown = scale_bilaterally(old, 1.5, 0)

    def seen(model, tokens):
        found = trace(model, tokens)
        for residual in found.residuals[:2]:
            residual[:, 0, 5] += 1e4
        found.residuals[2][:, 0, 5] += error * (model is grown)
        return found

    monkeypatch.setattr(verify_growth_mechanics, "trace", seen)
    result = check_functional_identity(old, grown)
    assert bool(result) == is_sound and ("first in block 2" in result.reason) == (not is_sound)
    # Of the last residual alone that error is far more than rounding.
    last = trace(old, TOKENS).residuals[2]
    assert error / rms(last) > 1e-3


# --- gradients and the optimizer


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("factor", [1.25, 1.5, 2, 3])
@pytest.mark.parametrize("choice", ["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_travel_through_the_maps(kind, choice, factor, noise):
    """And without noise the map is exact for all factors: a feature that holds zero moves no mean of squares."""
    old = KINDS[kind](CHOICES[choice]).double()
    new = scale_bilaterally(old, factor, 0, noise)
    maps = GrowthMaps.between(old.config, new.config)
    g_old, g_new = gradients(old, TOKENS), gradients(new, TOKENS)
    for name, g in g_old.items():
        torch.testing.assert_close(pulled_back(name, g.shape, maps, g_new[name]), g, rtol=1e-9, atol=1e-12)
        if noise == 0:
            torch.testing.assert_close(grown_gradient(name, g, maps), g_new[name], rtol=1e-9, atol=1e-12)


# --- liveness


@pytest.mark.parametrize("factor, extra", [(2, 2), (1.5, 1)])
def test_liveness_counts_what_is_new_and_all_of_it_learns(factor, extra):
    old = lively_dense_model(LLAMA)  # of experts some would have no tokens
    new = scale_bilaterally(old, factor, extra)
    coverage = GradientCoverage(new, old.config)
    assert coverage.new_parameters == count_parameters(new).total - count_parameters(old).total
    optimizers = build_optimizers(new, weight_decay=0.0, tokens=TOKENS.numel())
    set_learning_rate(optimizers, 0.01)
    before = liveness_report(new, old.config, TOKENS)
    for _ in range(4):
        new.zero_grad()
        next_token_loss(new, TOKENS)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
        coverage.steps += 1
    report = liveness_report(new, old.config, TOKENS, coverage)
    # Of the embedding's rows those of ids that the batch has not and no step writes.
    assert all(not share for name, share in report.never_touched_by_module.items() if name != "embedding")
    averages = [{c.kind: c.average for c in r.clone_cosines} for r in (before, report)]
    assert all(averages[1][kind] < averages[0][kind] for kind in ("heads", "hidden units"))


@pytest.mark.parametrize("shape, n_ranks, dim", [((2, 88, 32), 2, 0), ((2, 88, 32), 4, 1), ((8, 2, 88, 32), 4, 0),
                                                ((3, 2, 88, 32), 4, 2)])  # fmt: skip
def test_what_ranks_split_is_even(shape, n_ranks, dim):
    assert shared_dim(torch.Size(shape), n_ranks) == dim
