"""Muon: the peer in torch, fused projections, matrices and experts in turn, the step in the backward pass."""

import copy

import pytest
import torch

from models.lean import split
from training.muon import Muon, join_fused, split_fused
from transfer.optimizer_growth import widened


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24)])
def test_a_matrix_moves_as_with_torchs_own_muon(shape):
    """torch's orthogonalises in bf16 and takes 2-D parameters alone."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    a = Muon([{"params": [ours]}], weight_decay=0.1, dtype=torch.bfloat16)
    b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    a.param_groups[0]["lr"] = 0.02
    for step in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step + 2))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved, "both round to bf16, in another order"


def test_queries_keys_and_values_are_orthogonalised_apart():
    fused = torch.randn(24, 8)  # 2 heads × (q, k, v) × 4 features
    stack = split_fused(fused, 2)
    assert torch.equal(join_fused(stack, 2), fused)
    assert torch.equal(stack[0], torch.cat([fused[0:4], fused[12:16]]))
    assert torch.equal(stack[2], torch.cat([fused[8:12], fused[20:24]]))


def test_experts_take_turns_and_each_has_the_momentum_of_all_steps():
    stack = torch.zeros(8, 6, 4, requires_grad=True)
    muon = Muon([{"params": [stack], "period": 4}], weight_decay=0.0)
    muon.param_groups[0]["lr"] = 0.1
    moved = []
    for step in range(4):
        before = stack.detach().clone()
        stack.grad = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(step))
        muon.step()
        moved.append((stack.detach() != before).flatten(1).any(1).nonzero().flatten().tolist())
    assert moved == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # 4 times the rate, and √(6 / 4) for the shape.
    assert torch.linalg.svdvals(stack.detach()).max().item() == pytest.approx(0.1 * 4 * 1.5**0.5, rel=0.25)
    assert muon.state[stack]["momentum_buffer"].flatten(1).any(1).all()


def test_matrices_take_turns_and_each_has_the_momentum_of_all_steps():
    """Also fused projections. Together and in the backward pass the same ones move."""
    shapes = {"matrices": (6, 4), "fused": (24, 8)}
    for kind, shape in shapes.items():
        for in_backward in (False, True):
            weights = [torch.zeros(shape, requires_grad=True) for _ in range(5)]
            muon = Muon([{"params": weights, "period": 3, "n_heads": 2 if kind == "fused" else 0}], weight_decay=0.0)
            muon.param_groups[0]["lr"] = 0.1
            if in_backward:
                muon.move_in_backward(largest_norm=1e9)
            moved = []
            for step in range(4):
                before = [weight.detach().clone() for weight in weights]
                pull = torch.randn(shape, generator=torch.Generator().manual_seed(step))
                sum((weight * pull).sum() for weight in weights).backward()
                muon.step()
                muon.zero_grad()
                moved.append([i for i, weight in enumerate(weights) if not torch.equal(weight, before[i])])
            assert moved == [[0, 3], [1, 4], [2], [0, 3]], (kind, in_backward)
            assert all(muon.state[weight]["momentum_buffer"].any() for weight in weights)
            assert all(muon.state[weight]["step"] == 4 for weight in weights)
    # 3 times the rate, and √(6 / 4) for the shape: of the matrix that has moved once.
    once = Muon([{"params": [weight := torch.zeros(6, 4, requires_grad=True)], "period": 3}], weight_decay=0.0)
    once.param_groups[0]["lr"] = 0.1
    weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    once.step()
    assert torch.linalg.svdvals(weight.detach()).max().item() == pytest.approx(0.1 * 3 * 1.5**0.5, rel=0.26)


def test_turns_go_on_where_they_were():
    """Bit for bit, from the state alone; the negative control begins with the first turn again."""

    def go(weights, muon, steps):
        muon.param_groups[0]["lr"] = 0.1
        for step in steps:
            for i, weight in enumerate(weights):
                weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(100 * step + i))
            muon.step()
        return [weight.detach().clone() for weight in weights]

    def new(starts):
        weights = [start.clone().requires_grad_() for start in starts]
        return weights, Muon([{"params": weights, "period": 4}], weight_decay=0.1)

    weights, muon = new([torch.ones(8, 8)] * 6)
    half = go(weights, muon, range(5))
    state = [copy.deepcopy(muon.state[weight]) for weight in weights]
    expected = go(weights, muon, range(5, 11))
    for forgets in (False, True):
        weights, muon = new(half)
        for weight, moments in zip(weights, state):
            muon.state[weight] = copy.deepcopy(moments)
            if forgets:
                muon.state[weight]["step"] = torch.zeros((), dtype=torch.int64)
        ends = go(weights, muon, range(5, 11))
        assert all(torch.equal(end, wanted) for end, wanted in zip(ends, expected)) != forgets


def test_a_parameter_without_a_gradient_stays():
    weight = torch.ones(4, 4, requires_grad=True)
    muon = Muon([{"params": [weight]}], weight_decay=0.1)
    muon.param_groups[0]["lr"] = 0.1
    muon.step()
    assert torch.equal(weight, torch.ones(4, 4)) and not muon.state[weight]


def two_matrices(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((48, 16), (8, 24, 16))]


def loss_of(matrices, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return sum((m * torch.randn(m.shape, generator=generator)).sum() + m.square().sum() for m in matrices)


def test_moved_in_the_backward_pass_matrices_go_where_they_went_after_it():
    ends = []
    for in_backward in (False, True):
        matrices = two_matrices()
        muon = Muon([{"params": matrices[:1]}, {"params": matrices[1:], "period": 4}], weight_decay=0.1)
        if in_backward:
            muon.move_in_backward(largest_norm=1e9)
        for step in range(5):
            for group in muon.param_groups:
                group["lr"] = 0.02 / (step + 1)
            loss_of(matrices, step).backward()
            muon.step()
            muon.zero_grad()
        ends.append([matrix.detach() for matrix in matrices])
    for after, within in zip(*ends):
        assert torch.equal(after, within)

    muon.leave_parameters()
    loss_of(matrices, 0).backward()
    assert all(torch.equal(matrix, end) and matrix.grad is not None for matrix, end in zip(matrices, ends[1]))


def test_in_the_backward_pass_gradients_are_clipped_measured_and_freed():
    matrices = two_matrices()
    muon = Muon([{"params": matrices}], weight_decay=0.0, is_narrow=True)
    muon.move_in_backward(largest_norm=0.5)
    gradients = [torch.autograd.grad(loss_of(matrices, 0), matrix)[0] for matrix in matrices]
    loss_of(matrices, 0).backward()
    assert all(matrix.grad is None for matrix in matrices)
    norms = torch.stack(muon.norms_in_backward).sort().values
    torch.testing.assert_close(norms, torch.stack([g.norm() for g in gradients]).sort().values)
    momenta = [widened(muon.state[matrix])["momentum_buffer"] for matrix in matrices]
    for matrix, momentum, gradient in zip(matrices, momenta, gradients):
        assert muon.state[matrix]["momentum_buffer"].dtype == torch.int8
        expected = 0.05 * gradient * (0.5 / gradient.norm())
        assert (momentum - expected).norm() < 0.01 * expected.norm()

    muon.end_step(4 * max(gradient.norm() for gradient in gradients))
    assert not muon.norms_in_backward
    gradients = [torch.autograd.grad(loss_of(matrices, 1), matrix)[0] for matrix in matrices]
    loss_of(matrices, 1).backward()
    for matrix, before, gradient in zip(matrices, momenta, gradients):
        expected = 0.95 * before + 0.05 * gradient * (0.5 / muon.state[matrix]["whole_norm"])
        assert (widened(muon.state[matrix])["momentum_buffer"] - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("noise, error", [(6.0, 0.05), (1.0, 0.05), (0.0, 0.2)])
def test_a_momentum_in_one_byte_follows_the_exact_one(noise, error):
    """A gradient with noise, as of any batch, carries it over its steps; a constant one must not get stuck far from itself.

    There a change of 0.05 · (g - m) is lost below half a step, √(m · largest) / 127: at 0.16 of the largest.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.zeros(64, 32, requires_grad=True)
    muon = Muon([{"params": [matrix]}], weight_decay=0.0, is_narrow=True)
    signal, exact = torch.randn(64, 32, generator=generator), torch.zeros(64, 32)
    for _ in range(200):
        matrix.grad = signal + noise * torch.randn(64, 32, generator=generator)
        exact.lerp_(matrix.grad, 0.05)
        muon.step()
    momentum = widened(muon.state[matrix])["momentum_buffer"]
    assert (momentum - exact).norm() < error * exact.norm()


def test_a_batch_of_matrices_moves_as_each_alone():
    """Tall, wide, fused and stacked ones, more than fit into one batch; the negative control mixes them up."""
    shapes = {"fused": (48, 16), "tall": (64, 16), "wide": (16, 64), "stack": (8, 64, 16)}
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shapes[kind], generator=generator) for kind in ("fused", "tall", "wide", "stack") * 3]
    gradients = [torch.randn(start.shape, generator=generator) for start in starts]

    def moved(together: bool) -> list[torch.Tensor]:
        parameters = [start.clone().requires_grad_() for start in starts]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        groups = [
            {"params": [p], "n_heads": 2 if p.shape == (48, 16) else 0, "period": 4 if p.dim() == 3 else 1}
            for p in parameters
        ]
        for optimizer in [Muon(groups, 0.1)] if together else [Muon([group], 0.1) for group in groups]:
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    alone = moved(together=False)
    for a, b, start in zip(moved(together=True), alone, starts):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert not torch.equal(a, start)
    assert not torch.allclose(alone[1] - starts[1], alone[5] - starts[5], atol=1e-3), "matrices must be told apart"


@pytest.mark.parametrize("in_three_bytes", [False, True])
def test_in_blocks_of_rows_a_matrix_moves_as_whole(monkeypatch, in_three_bytes):
    """Bit for bit; 7 rows and stacks of two, in blocks of 2 rows, of a row, and of all of them.

    Nothing is clipped: norms are added up in another order, and may differ by its rounding.
    """
    moved, norms = [], []
    for block in (2**19, 20, 1):
        monkeypatch.setattr("training.muon.BLOCK", block)
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator) for shape in ((7, 10), (4, 7, 5), (3, 2, 7, 5))]
        lows = {}
        if in_three_bytes:
            parts = [split(weight) for weight in weights]
            weights, lows = [high for high, _ in parts], dict(parts)
        for weight in weights:
            weight.requires_grad_()
        muon = Muon([{"params": weights, "period": 2}], 0.1, lows=lows, is_narrow=in_three_bytes)
        muon.param_groups[0]["lr"] = 0.1
        muon.move_in_backward(1e9)
        for _ in range(3):
            for weight in weights:
                (weight * torch.randn(weight.shape, generator=generator).to(weight.dtype)).sum().backward()
        momenta = [value for weight in weights for value in muon.state[weight].values()]
        moved.append([*weights, *lows.values(), *momenta])
        norms.append(torch.stack(muon.norms_in_backward))
    torch.testing.assert_close(norms, [norms[0]] * 3, rtol=1e-5, atol=0)
    for blocks in moved[1:]:
        assert all(torch.equal(a, b) for a, b in zip(moved[0], blocks, strict=True))
