"""Orthogonalisation: how near to one, the same by either form, in every precision; and what it costs."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training import orthogonalise as module
from training.orthogonalise import STEPS, orthogonalisation_flops, orthogonalise, symmetric_product

SHAPES = [(1, 32, 32), (2, 16, 64), (5, 16, 20)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(values: Tensor, columns: int) -> Tensor:
    """One wide matrix, (1, n, columns)."""
    left, right = (torch.linalg.qr(random(n, len(values), seed=n)).Q for n in (len(values), columns + 1))
    return (left * values @ right[:columns].T)[None]


def without_gram_form(stack: Tensor) -> Tensor:
    """The same polynomials of X itself, one after another."""
    x = stack / stack.norm(dim=(-2, -1), keepdim=True)
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_of_an_update_are_about_one(shape):
    values = torch.linalg.svdvals(orthogonalise(random(*shape).float()))
    assert 0.5 < values.min() and values.max() < 1.3
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


def test_the_steps_bring_singular_values_of_a_five_hundredth_to_one_to_about_one():
    x = torch.logspace(-2.7, 0, 10_001, dtype=torch.float64)
    for a, b, c in STEPS:
        x = a * x + b * x**3 + c * x**5
    assert 0.67 < x.min() and x.max() < 1.21
    assert x[-1] == pytest.approx(0.70, abs=0.01), "the largest is damped"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_form_is_the_plain_one(shape, monkeypatch):
    """In fp64, whether the Gram matrix is computed anew or not, and in blocks or not. The negative control: a step less."""
    stack = random(*shape)
    expected = without_gram_form(stack)
    for at_once, rows in ((4, 256), (2, 256), (4, 5)):
        monkeypatch.setitem(module.STEPS_A_GRAM, torch.float64, at_once)
        monkeypatch.setattr(module, "ROWS", rows)
        assert (orthogonalise(stack) - expected).abs().max() < 1e-10
    monkeypatch.setattr(module, "STEPS", STEPS[:-1])
    assert (orthogonalise(stack) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("dtype, tolerance, similarity", [(torch.float32, 0.05, 0.9999), (torch.bfloat16, 0.15, 0.98)])
def test_singular_values_that_span_three_orders_of_magnitude_come_out_in_every_precision(dtype, tolerance, similarity):
    """As a momentum's do; none may explode where its eigenvalue has drowned in rounding."""
    values = torch.logspace(0, -3, 96, dtype=torch.float64)
    stack = with_singular_values(values, 192)
    x = values / values.norm()
    for a, b, c in STEPS:
        x = a * x + b * x**3 + c * x**5
    update = orthogonalise(stack.to(dtype)).double()
    found = torch.linalg.svdvals(update)[0]
    torch.testing.assert_close(found, x.sort(descending=True).values, atol=tolerance, rtol=0)
    exact = orthogonalise(stack)
    assert (update * exact).sum() / (update.norm() * exact.norm()) > similarity


def test_in_bf16_one_gram_matrix_is_not_enough(monkeypatch):
    """Negative control of the second one."""
    stack = with_singular_values(torch.logspace(0, -3, 96, dtype=torch.float64), 192)
    exact = orthogonalise(stack)

    def similarity() -> float:
        update = orthogonalise(stack.bfloat16()).double()
        return ((update * exact).sum() / (update.norm() * exact.norm())).item()

    with_two = similarity()
    monkeypatch.setitem(module.STEPS_A_GRAM, torch.bfloat16, 4)
    assert not similarity() > with_two - 0.02


def test_an_expert_without_tokens_comes_to_rest_and_stays_finite():
    fading = 1e-23 * torch.randn(3, 64, 1) @ torch.randn(3, 1, 256)
    assert orthogonalise(fading).abs().max() < 1e-9
    assert orthogonalise(fading.bfloat16()).isfinite().all()


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 16])
def test_a_symmetric_product_in_blocks_is_the_whole_one(rows, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    x = random(2, 7, 5)
    torch.testing.assert_close(symmetric_product(x, x.mT), x @ x.mT)
    one_sided = random(2, 7, 7)
    assert rows >= 7 or not torch.allclose(symmetric_product(one_sided, one_sided), one_sided @ one_sided)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 128), (257, 300), (832, 3328), (6656, 1664)])
def test_counted_products_cost_what_the_formula_says(shape, dtype):
    wide = torch.empty(3, *sorted(shape), dtype=dtype, device="meta")
    with FlopCounterMode(display=False) as counter:
        orthogonalise(wide)
    assert counter.get_total_flops() == 3 * orthogonalisation_flops(*shape, dtype)
