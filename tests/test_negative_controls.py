"""Broken growth, each fault caught by the named check with the named hint (and by no innocent one)."""

import pytest
import torch

from config import ModelConfig, UserError
from models import Transformer
from test_growth_checks import lively_moe_model
from tests.broken_growth import FAULTS, HINTS, add_near_ties
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import (
    check_functional_identity,
    check_rope_integrity,
    check_router_scaling,
    check_symmetry_breaking,
    detailed_growth_check,
)

GEOMETRY = ModelConfig(vocab_size=211, d_model=32, n_layers=3, n_heads=4, context_length=24)
TOKENS = torch.randint(211, (8, 25), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def old() -> Transformer:
    return lively_moe_model(GEOMETRY)


@pytest.fixture
def grown(old) -> Transformer:
    return scale_bilaterally(old, 2, 2).requires_grad_(False)


def failures(old, new, tokens=None) -> dict[str, str]:
    return {name: result.hint for name, result in detailed_growth_check(old, new, tokens).items() if not result}


def test_sound_growth_passes_every_check(old):
    for factor, extra, noise in ((2, 2, 0.5), (1.5, 1, 0.5), (3, 0, 1.0), (1, 3, 0.0)):
        assert failures(old, scale_bilaterally(old, factor, extra, noise)) == {}


@pytest.mark.parametrize("has_near_ties", [False, True], ids=["", "with near-ties"])
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_the_check_that_names_it_and_no_innocent_one(name, has_near_ties, old):
    fault = FAULTS[name]
    if has_near_ties:
        add_near_ties(old, TOKENS)
    failed = failures(old, fault.grown(old), TOKENS)
    assert failed[fault.check] == HINTS[fault.check]
    # What is wrong inside a layer shows in the function, too; one expert in the place of another also in the router.
    innocent = {"rope", "router", "symmetry"} - {fault.check} - ({"router"} if "exchanged" in name else set())
    assert not innocent & failed.keys()
    if fault.check == "symmetry":
        assert failed.keys() == {"symmetry"}


@pytest.mark.parametrize(
    "name, check, reason",
    [
        ("heads not scaled", check_rope_integrity, "RoPE broken: head_dim changed from 8 to 16"),
        ("rotary base changed", check_rope_integrity, "scores drift"),
        ("query rows of heads shifted", check_rope_integrity, "scores drift"),
        ("router not divided", check_router_scaling, "Router logits drifted by"),
        (
            "router not divided",
            check_functional_identity,
            "choices of experts changed without a near-tie, first in block",
        ),
        ("router off by thrice the tolerance", check_router_scaling, "Router logits drifted by"),
        ("two close rows of a router exchanged", check_functional_identity, "left out, more than 1%"),
        ("two close rows of a router exchanged", check_router_scaling, "left out, more than 1%"),
        ("noise missing in one matrix", check_symmetry_breaking, "hidden units in block 2"),
        ("noise missing", check_symmetry_breaking, "Gradients are identical"),
        ("tied head not rescaled", check_functional_identity, "first in logits"),
        ("last block copied", check_functional_identity, "first in block 1 (identity)"),
        ("noise on the wrong axis", check_functional_identity, "Layer-wise drift exceeds tolerance: first in block 2"),
        ("gain for mean features missing", check_functional_identity, "first in block 1"),
    ],
)
def test_the_reason_says_what_is_wrong(name, check, reason, old):
    result = check(old, FAULTS[name].grown(old))
    assert not result and reason in result.reason


def test_the_hint_is_printed(old, capsys):
    for name, text in (
        ("heads not scaled", "n_heads = old_model.blocks[0].attention.n_heads * scale_factor"),
        ("router not divided", "w_new = w.repeat(1, scale_factor) / scale_factor"),
        ("noise inert", "Gradients are identical"),
    ):
        failures(old, FAULTS[name].grown(old))
        assert text in capsys.readouterr().out


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
