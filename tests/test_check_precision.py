"""The growth checks know the dtype: they say which tolerance they used, pass sound growth, and catch faults in each."""

import pytest
import torch

from config import ModelConfig, TrainingConfig, UserError
from models import Transformer
from test_growth_checks import lively_dense_model, lively_moe_model
from tests.broken_growth import FAULTS
from transfer.rounding import PRECISIONS
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import (
    check_functional_identity,
    check_rope_integrity,
    check_router_scaling,
    detailed_growth_check,
)

GEOMETRY = ModelConfig(vocab_size=211, d_model=32, n_layers=3, n_heads=4, context_length=24)
TOLERANCES = {
    torch.float64: (1e-9, "tolerance 1e-09 for float64"),
    torch.float32: (1e-4, "tolerance 1e-04 for float32"),
    torch.bfloat16: (0.1, "tolerance 1e-01 for bfloat16"),
}


def failures(old: Transformer, new: Transformer) -> set[str]:
    return {name for name, result in detailed_growth_check(old, new).items() if not result}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", [lively_dense_model, lively_moe_model])
def test_sound_growth_passes_and_the_tolerance_is_reported(kind, dtype, capsys):
    old = kind(GEOMETRY).to(dtype)
    tolerance, text = TOLERANCES[dtype]
    for factor, extra in ((2, 2), (1.5, 1)):
        results = detailed_growth_check(old, scale_bilaterally(old, factor, extra))
        assert all(results.values())
        with_tolerance = {"rope", "functional", "router"} if old.config.is_moe else {"rope", "functional"}
        assert {name for name, result in results.items() if "tolerance" in result.figures} == with_tolerance
        assert all(results[name].figures["tolerance"] == tolerance for name in with_tolerance)
        assert capsys.readouterr().out.count(text) == len(with_tolerance)


def test_fp32_has_the_tolerance_of_a_run():
    assert PRECISIONS[torch.float32].tolerance == TrainingConfig().check_tolerance


def test_a_tolerance_that_is_given_counts(capsys):
    old = lively_moe_model(GEOMETRY).to(torch.bfloat16)
    result = check_functional_identity(old, scale_bilaterally(old, 2, 0), tolerance=1e-3)
    assert not result and result.figures["tolerance"] == 1e-3
    assert "tolerance 1e-03 for bfloat16" in capsys.readouterr().out


def test_a_dtype_without_figures_is_refused():
    old = lively_dense_model(GEOMETRY).half()
    with pytest.raises(UserError, match="weights are float16, but the growth checks know float64, float32, bfloat16"):
        detailed_growth_check(old, scale_bilaterally(old, 2, 0))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "query rows of heads shifted",
        "router not divided",
        "noise missing in one matrix",
        "tied head not rescaled",
        "last block copied",
        "noise on the wrong axis",
    ],
)
def test_each_fault_is_caught_in_each_dtype(name, dtype):
    fault, old = FAULTS[name], lively_moe_model(GEOMETRY).to(dtype)
    failed = failures(old, fault.grown(old))
    # What is wrong inside a layer may show in the function, too.
    assert fault.check in failed and failed <= {fault.check, "functional"}


def test_missing_gain_is_caught_in_bf16():
    """The fault that moves the median token least of those that no other check sees."""
    old = lively_moe_model(GEOMETRY).to(torch.bfloat16)
    assert failures(old, FAULTS["gain for mean features missing"].grown(old)) == {"functional"}


def test_no_check_passes_over_a_value_that_is_no_number():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 2).requires_grad_(False)
    new.blocks[0].attention.qkv.bias[0] = float("nan")
    new.blocks[0].mlp.router.weight[0, 0] = float("nan")
    assert not check_rope_integrity(old, new) and not check_router_scaling(old, new)
