"""What a model is sure of, in bf16: near 1 its numbers are 0.004 apart, and the loss has to know better."""

import pytest
import torch

from models.loss import ChunkedCrossEntropy, negative_log

N, D, V = 64, 256, 512


def logits_of(sureness: float, dtype):
    """Hidden states and an output matrix whose logits give each target about the same probability."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(N, D, generator=generator)
    output_VD = torch.randn(V, D, generator=generator) * 0.02
    target_N = torch.arange(N)
    output_VD[:N] = hidden_ND * (sureness / hidden_ND.square().sum(-1, keepdim=True))
    return hidden_ND.to(dtype), output_VD, target_N


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2**-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sureness, probability", [(0.0, 0.002), (6.3, 0.5), (11.5, 0.99), (13.0, 0.998)])
def test_gradients_and_losses_of_sure_predictions_are_right(sureness, probability, dtype, bound):
    """Against an fp64 softmax of the same logits. A bf16 number, of which the gradient is made, is off by 2⁻⁹ of itself."""
    hidden_ND, output_VD, target_N = logits_of(sureness, dtype)
    logits_NV = (hidden_ND @ output_VD.to(dtype).T).double()
    exact_NV = logits_NV.softmax(-1)
    p_N = exact_NV[torch.arange(N), target_N]
    assert p_N.median().item() == pytest.approx(probability, rel=0.3)
    expected_loss = -logits_NV.log_softmax(-1)[torch.arange(N), target_N].sum()
    exact_NV[torch.arange(N), target_N] -= 1
    expected = exact_NV.T @ hidden_ND.double()

    weight = output_VD.clone().requires_grad_()
    loss = ChunkedCrossEntropy.apply(hidden_ND, weight, target_N)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=bound)
    assert (weight.grad.double() - expected).norm() <= 2 * bound * expected.norm()


def test_a_loss_that_is_no_number_stays_none():
    nan, inf = float("nan"), float("inf")
    found = negative_log(torch.tensor([nan, 0.0, 1.0]), torch.tensor([nan, 1.0, 0.0]))
    assert found.isnan().tolist() == [True, False, False]
    assert found[1] == pytest.approx(87.3, abs=0.1) and found[2] == 0
    hidden, target = torch.full((2, 4), inf), torch.tensor([0, 1])
    assert not ChunkedCrossEntropy.apply(hidden, torch.ones(3, 4), target).isfinite()
