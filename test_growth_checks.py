#!/usr/bin/env python3
"""The growth checks without training: `python test_growth_checks.py`, or under pytest.

TEST 1 upcycles a small dense model, TEST 2 grows the mixture of experts in width and depth; both
check the result with the code that guards a training run. The models are small and random, with
weights large enough to make every layer matter. Broken models that the checks must catch are in
tests/test_negative_controls.py.

Exit codes: 0 all passed, 3 a check failed.
"""

from __future__ import annotations

import sys

import torch

from config import ModelConfig
from models import Transformer, build_dense_model
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import CheckResult, check_functional_identity, detailed_growth_check

GEOMETRY = ModelConfig(vocab_size=1000, d_model=128, n_layers=7, n_heads=4, context_length=64)


def lively_dense_model(config: ModelConfig = GEOMETRY, seed: int = 0) -> Transformer:
    """A random model whose biases, gains and projections are all far from their initial values."""
    model = build_dense_model(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.05, generator=generator))
    return model


def lively_moe_model(config: ModelConfig = GEOMETRY, seed: int = 0) -> Transformer:
    """The same upcycled, with experts that have grown apart."""
    model = upcycle_to_moe(lively_dense_model(config, seed), n_experts=8, top_k=2, router_std=0.2, seed=seed)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for block in model.blocks:
            for parameter in (*block.mlp.up.parameters(), *block.mlp.down.parameters()):
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.02, generator=generator))
    return model


def check_dense_to_moe() -> list[CheckResult]:
    _title("TEST 1: Dense → MoE Transition")
    dense = lively_dense_model()
    result = check_functional_identity(dense, upcycle_to_moe(dense))
    if result:
        print("  ✓ PASSED — functional equivalence confirmed\n")
    return [result]


def check_bilateral_growth() -> list[CheckResult]:
    _title("TEST 2: Bilateral Growth Verification")
    moe = lively_moe_model()
    return list(detailed_growth_check(moe, scale_bilaterally(moe, scale_factor=2, extra_layers=4)).values())


def test_dense_to_moe_transition():
    assert all(check_dense_to_moe())


def test_bilateral_growth():
    assert all(check_bilateral_growth())


def _title(text: str) -> None:
    print("=" * 70 + f"\n  {text}\n" + "=" * 70)


def main() -> int:
    sys.stdout.reconfigure(errors="replace")
    upcycled, grown = check_dense_to_moe(), check_bilateral_growth()
    print(f"\n{'✓' if all(upcycled) else '✗'} Dense → MoE transition test completed!")
    print(f"{'✓' if all(grown) else '✗'} Bilateral growth test completed!")
    failed = [result.reason for result in upcycled + grown if not result]
    if failed:
        print(f"failed: {'; '.join(failed)}")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
