"""Muon: orthogonal updates, the peer in torch, fused projections, experts in turn."""

import pytest
import torch

from training.muon import Muon, join_fused, orthogonalise, split_fused


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 16, 64), (5, 16, 20)])
def test_singular_values_of_an_update_are_about_one(shape):
    update = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update)
    assert 0.5 < values.min() and values.max() < 1.3
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


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
    # √4 times the rate, and √(6 / 4) for the shape.
    assert torch.linalg.svdvals(stack.detach()).max().item() == pytest.approx(0.1 * 2 * 1.5**0.5, rel=0.25)
    assert muon.state[stack]["momentum_buffer"].flatten(1).any(1).all()


def test_an_expert_without_tokens_comes_to_rest_and_stays_finite():
    fading = 1e-23 * torch.randn(3, 64, 1) @ torch.randn(3, 1, 256)
    assert orthogonalise(fading).abs().max() < 1e-9
    assert orthogonalise(fading.bfloat16()).isfinite().all()


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
    muon = Muon([{"params": matrices}], weight_decay=0.0, momentum_dtype=torch.bfloat16)
    muon.move_in_backward(largest_norm=0.5)
    gradients = [torch.autograd.grad(loss_of(matrices, 0), matrix)[0] for matrix in matrices]
    loss_of(matrices, 0).backward()
    assert all(matrix.grad is None for matrix in matrices)
    norms = torch.stack(muon.norms_in_backward).sort().values
    torch.testing.assert_close(norms, torch.stack([g.norm() for g in gradients]).sort().values)
    momenta = [muon.state[matrix]["momentum_buffer"].clone() for matrix in matrices]
    for momentum, gradient in zip(momenta, gradients):
        assert momentum.dtype == torch.bfloat16
        expected = 0.05 * gradient * (0.5 / gradient.norm())
        assert (momentum - expected).norm() < 0.01 * expected.norm()

    muon.end_step(4 * max(gradient.norm() for gradient in gradients))
    assert not muon.norms_in_backward
    gradients = [torch.autograd.grad(loss_of(matrices, 1), matrix)[0] for matrix in matrices]
    loss_of(matrices, 1).backward()
    for matrix, before, gradient in zip(matrices, momenta, gradients):
        expected = 0.95 * before + 0.05 * gradient * (0.5 / muon.state[matrix]["whole_norm"])
        assert (muon.state[matrix]["momentum_buffer"] - expected).norm() < 0.01 * expected.norm()


def test_a_bf16_momentum_follows_the_exact_one():
    """Rounded to nearest, once a step; a constant gradient must not get stuck short of itself."""
    matrix = torch.zeros(64, 32, requires_grad=True)
    muon = Muon([{"params": [matrix]}], weight_decay=0.0, momentum_dtype=torch.bfloat16)
    gradient = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        matrix.grad = gradient.clone()
        muon.step()
    momentum = muon.state[matrix]["momentum_buffer"].float()
    assert (momentum - gradient).norm() < 0.08 * gradient.norm()


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
