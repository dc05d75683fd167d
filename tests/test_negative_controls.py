"""Broken growth, each fault caught by the named check with the named hint (and by no innocent one)."""

import dataclasses

import pytest
import torch

from config import ModelConfig, UserError
from models import Transformer
from test_growth_checks import lively_moe_model
from transfer.growth_maps import block_origins
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import (
    FUNCTION_HINT,
    ROPE_HINT,
    ROUTER_HINT,
    SYMMETRY_HINT,
    check_functional_identity,
    check_rope_integrity,
    check_router_scaling,
    check_symmetry_breaking,
    detailed_growth_check,
)

GEOMETRY = ModelConfig(vocab_size=211, d_model=32, n_layers=3, n_heads=4, context_length=24)


@pytest.fixture
def old() -> Transformer:
    return lively_moe_model(GEOMETRY)


@pytest.fixture
def grown(old) -> Transformer:
    return scale_bilaterally(old, 2, 2).requires_grad_(False)


def failures(old, new) -> dict[str, str]:
    return {name: result.hint for name, result in detailed_growth_check(old, new).items() if not result}


def test_sound_growth_passes_every_check(old):
    for factor, extra, noise in ((2, 2, 0.5), (1.5, 1, 0.5), (3, 0, 1.0), (1, 3, 0.0)):
        assert failures(old, scale_bilaterally(old, factor, extra, noise)) == {}


def test_heads_not_scaled(old, grown, capsys):
    broken = Transformer.empty(dataclasses.replace(grown.config, n_heads=4))
    broken.load_state_dict(grown.state_dict())
    result = check_rope_integrity(old, broken)
    assert not result and result.hint == ROPE_HINT and "RoPE broken: head_dim changed from 8 to 16" in result.reason
    assert "n_heads = old_model.blocks[0].attention.n_heads * scale_factor" in capsys.readouterr().out
    assert "rope" in failures(old, broken)


@pytest.mark.parametrize("n_heads", [2, 16])
def test_other_numbers_of_heads_fail_and_do_not_crash(old, grown, n_heads):
    broken = Transformer.empty(dataclasses.replace(grown.config, n_heads=n_heads))
    broken.load_state_dict(grown.state_dict())
    assert {"rope", "functional"} <= failures(old, broken).keys()


def test_rotary_base_changed(old, grown):
    broken = Transformer.empty(dataclasses.replace(grown.config, rope_base=500.0))
    broken.load_state_dict(grown.state_dict())
    result = check_rope_integrity(old, broken)
    assert not result and result.hint == ROPE_HINT and "scores drift" in result.reason
    assert "rope" in failures(old, broken)


def test_query_rows_of_heads_shifted(old, grown):
    """The shapes are right: only the scores tell."""
    for block in grown.blocks:
        rows = block.attention.qkv.weight.view(8, 3, 8, -1)
        rows[:, 0] = rows[:, 0].roll(1, dims=1)
    result = check_rope_integrity(old, grown)
    assert not result and result.hint == ROPE_HINT and "scores drift" in result.reason


def test_router_not_divided(old, grown, capsys):
    for block in grown.blocks:
        block.mlp.router.weight *= 2
    assert failures(old, grown)["router"] == ROUTER_HINT
    assert "w_new = w.repeat(1, scale_factor) / scale_factor" in capsys.readouterr().out
    assert check_rope_integrity(old, grown)


@pytest.mark.parametrize("noise_std", [0.0, 1e-5])
def test_noise_missing_or_inert(old, noise_std, capsys):
    broken = scale_bilaterally(old, 2, 2, noise_std=noise_std)
    assert failures(old, broken) == {"symmetry": SYMMETRY_HINT}
    assert "Gradients are identical" in capsys.readouterr().out


def test_noise_missing_in_one_kind_of_matrix(old, grown):
    """What reads the hidden units of one block is left without noise: those units are locked."""
    silent = scale_bilaterally(old, 2, 2, noise_std=0.0)
    with torch.no_grad():
        grown.blocks[2].mlp.down.weight.copy_(silent.blocks[2].mlp.down.weight)
    result = check_symmetry_breaking(old, grown)
    assert not result and "hidden units in block 2" in result.reason


def test_tied_head_not_rescaled(old, grown):
    grown.final_norm.weight *= 2
    grown.final_norm.bias *= 2
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert "first in logits" in check_functional_identity(old, grown).reason


def test_last_block_copied_instead_of_an_identity_block(old, grown):
    origins = block_origins(3, 2)
    identity, last = origins.index(None), origins.index(2)
    grown.blocks[identity].load_state_dict(grown.blocks[last].state_dict())
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert f"first in block {identity} (identity)" in check_functional_identity(old, grown).reason


def test_noise_on_the_wrong_axis(old, grown):
    """Opposite signs over the rows that clones produce, in place of the columns that they are read by."""
    weight = grown.blocks[2].mlp.up.weight
    noise = 0.5 * weight.std() * torch.randn(8, 128, 64, generator=torch.Generator().manual_seed(0))
    weight += torch.cat((noise, -noise), dim=1)
    assert failures(old, grown) == {"functional": FUNCTION_HINT}
    assert "Layer-wise drift exceeds tolerance: first in block 2" in check_functional_identity(old, grown).reason


def test_mean_filled_features_without_the_gain_that_makes_up_for_them(old):
    grown = scale_bilaterally(old, 1.5, 0).requires_grad_(False)
    grown.blocks[1].attention_norm.weight *= 1.5**0.5
    assert "first in block 1" in check_functional_identity(old, grown).reason


def test_a_value_that_is_no_number_is_a_drift_and_no_living_clone(old, grown):
    grown.blocks[0].mlp.down.bias[0] = float("nan")
    assert not check_functional_identity(old, grown)
    grown.final_norm.weight.fill_(float("nan"))
    assert not check_symmetry_breaking(old, grown)


def test_clones_without_any_gradient_are_not_alive(old, grown):
    grown.final_norm.weight.zero_()
    result = check_symmetry_breaking(old, grown)
    assert not result and "No clone received any gradient" in result.reason


def test_tolerance_decides(old, grown):
    grown.final_norm.weight *= 1 + 5e-4
    assert not check_functional_identity(old, grown, tolerance=1e-4)
    assert check_functional_identity(old, grown, tolerance=1e-2)
    grown.blocks[0].mlp.router.weight *= 1 + 5e-4
    assert not check_router_scaling(old, grown, tolerance=1e-4)
    assert check_router_scaling(old, grown, tolerance=1e-2)


def test_symmetry_check_leaves_the_model_as_it_was(old):
    grown = scale_bilaterally(old, 2, 2)
    before = {name: value.clone() for name, value in grown.state_dict().items()}
    grown.embedding.weight.requires_grad_(False)
    check_symmetry_breaking(old, grown)
    assert all(torch.equal(value, before[name]) for name, value in grown.state_dict().items())
    assert [p.requires_grad for p in grown.parameters()] == [False] + [True] * (len(before) - 1)
    assert all(p.grad is None for p in grown.parameters())


def test_probe_tokens_longer_than_the_context_are_refused(old, grown):
    with pytest.raises(UserError, match="26 probe tokens"):
        check_functional_identity(old, grown, torch.zeros(1, 26, dtype=torch.int64))
