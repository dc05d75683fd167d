"""The mixture-of-experts layer against a plain computation, token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

from config import ModelConfig
from models import experts
from models.loss import router_loss
from models.moe import MoE
from transfer.near_ties import near_tied

CONFIG = ModelConfig(vocab_size=8, d_model=16, n_layers=1, n_heads=2, n_experts=4, top_k=2)


def layer(dtype=torch.float32, seed: int = 0) -> MoE:
    generator = torch.Generator().manual_seed(seed)
    moe = MoE(CONFIG)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0.0, 0.3, generator=generator))
    return moe.to(dtype)


def inputs(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def token_by_token(moe: MoE, x_BTD: torch.Tensor) -> torch.Tensor:
    """The definition, without sorting or grouping."""
    assert not near_tied(moe.router(x_BTD.flatten(0, 1)), moe.top_k, 1e-4).any(), "take another seed for this test"
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        logits_E = moe.router.weight @ x_D
        chosen = logits_E.topk(moe.top_k)
        y_D = 0
        for gate, e in zip(chosen.values.softmax(-1), chosen.indices):
            hidden_F = F.gelu(moe.up.weight[e] @ x_D + moe.up.bias[e])
            y_D = y_D + gate * (moe.down.weight[e] @ hidden_F + moe.down.bias[e])
        rows.append(y_D)
    return torch.stack(rows).view_as(x_BTD)


def output_and_gradients(moe: MoE, x: torch.Tensor) -> list[torch.Tensor]:
    y = moe(x)[0]
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *moe.parameters()])]


@pytest.mark.parametrize("keeps_hidden", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_equal_the_definition(dtype, keeps_hidden):
    moe, x = layer(dtype), inputs(dtype).requires_grad_()
    moe.keeps_hidden = keeps_hidden
    results = []
    for y in (moe(x)[0], token_by_token(moe, x)):
        gradients = torch.autograd.grad(y.square().sum(), [x, *moe.parameters()])
        results.append([y, *gradients])
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, atol=1e-4 if dtype == torch.float32 else 1e-9, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps_hidden", [True, False])
def test_all_experts_in_one_call_or_one_after_another(dtype, keeps_hidden, monkeypatch):
    """One call is what CUDA runs: here its code path runs on the CPU. Rows that only fill are a CPU's alone."""
    monkeypatch.setattr(experts, "ROW_MULTIPLE", 1)
    results = []
    for serves in (True, False):
        monkeypatch.setattr(experts, "grouped_mm_serves", lambda *_, serves=serves: serves)
        moe = layer(dtype)
        moe.keeps_hidden = keeps_hidden
        results.append(output_and_gradients(moe, inputs(dtype).requires_grad_()))
    for grouped, looped in zip(*results):
        difference = (grouped - looped).float().norm() / looped.float().norm()
        assert difference <= (1e-5 if dtype == torch.float32 else 0.02)


def test_one_call_serves_bf16_on_cuda_alone_and_only_where_it_has_a_kernel(monkeypatch):
    class OnCuda:
        device, dtype = torch.device("cuda"), torch.bfloat16
        element_size = staticmethod(lambda: 2)

    weight = torch.zeros(4, 16, 16)
    serving = set()
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        if experts.grouped_mm_serves(OnCuda(), weight):
            serving.add(capability)
    assert serving == {(9, 0), (10, 0), (10, 3)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert experts.grouped_mm_serves(OnCuda(), weight)
    assert not experts.grouped_mm_serves(OnCuda(), torch.zeros(4, 16, 6))  # rows of 12 bytes
    OnCuda.dtype = torch.float32
    assert not experts.grouped_mm_serves(OnCuda(), weight)
    assert not experts.grouped_mm_serves(torch.zeros(5, 16).bfloat16(), weight)


def test_without_hidden_units_kept_a_layer_gives_the_same_bits_and_routes_once(monkeypatch):
    calls = []
    monkeypatch.setattr(MoE, "routing", lambda *a, routing=MoE.routing: calls.append(1) or routing(*a))
    moe, x = layer(torch.bfloat16), inputs(torch.bfloat16).requires_grad_()
    kept = output_and_gradients(moe, x)
    moe.keeps_hidden = False
    for value, again in zip(kept, output_and_gradients(moe, x)):
        assert torch.equal(value, again)
    assert len(calls) == 2


def test_gradients_that_nobody_wants_are_not_made(monkeypatch):
    moe, x = layer(), inputs()
    whole = torch.autograd.grad(moe(x)[0].square().sum(), [moe.down.weight, moe.up.bias])
    made = []
    for name in ("weight_gradient", "bias_gradient"):
        original = getattr(experts, name)
        monkeypatch.setattr(experts, name, lambda d, *a, original=original: made.append(d.shape) or original(d, *a))
    moe.up.weight.requires_grad_(False)
    moe.down.bias.requires_grad_(False)
    some = torch.autograd.grad(moe(x)[0].square().sum(), [moe.down.weight, moe.up.bias])
    assert set(made) == {moe.down.weight.shape, moe.up.bias.shape}
    assert all(torch.equal(a, b) for a, b in zip(whole, some))


def test_rows_that_fill_up_change_nothing(monkeypatch):
    results = []
    for multiple in (1, 7, 32):
        monkeypatch.setattr(experts, "ROW_MULTIPLE", multiple)
        moe, x = layer(torch.bfloat16), inputs(torch.bfloat16).requires_grad_()
        results.append(output_and_gradients(moe, x))
        slots = experts.assign_slots(torch.tensor([[0, 2], [2, 1], [0, 1]]), 4, torch.bfloat16)
        assert slots.slots_per_expert_E.tolist() == [2, 2, 2, 0]
        assert not (slots.ends_E % multiple).any() and slots.ends_E[-1] <= len(slots.token_R) == 6 + 4 * (multiple - 1)
        assert slots.token_R[slots.row_Nk].tolist() == [[0, 0], [1, 1], [2, 2]]
    exact = experts.assign_slots(torch.tensor([[0, 2], [2, 1], [0, 1]]), 4, torch.float32)
    assert len(exact.token_R) == 6
    for kind, dtypes in {"cpu": [torch.bfloat16], "mps": [torch.bfloat16, torch.float32], "cuda": []}.items():
        for dtype in (torch.bfloat16, torch.float32):
            multiple = experts.row_multiple(torch.device(kind), dtype)
            assert multiple == (experts.ROW_MULTIPLE if dtype in dtypes else 1), (kind, dtype)
    for values in zip(*results):
        for other in values[1:]:
            assert (values[0] - other).float().norm() <= 0.01 * values[0].float().norm()


def filled_with_anything_where_empty(mat_a, mat_b, *, offs):
    """`grouped_mm` as on cards of compute capability 10: groups without rows get no zeros (pytorch #172439)."""
    result = grouped_mm(mat_a, mat_b, offs=offs)
    if mat_b.dim() == 2:
        result[offs.diff(prepend=offs.new_zeros(1)) == 0] = math.nan
    return result


grouped_mm = F.grouped_mm


@pytest.mark.parametrize("computed", ["one after another", "in one call", "in one call, capability 10"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_without_tokens_gets_no_gradient_and_breaks_nothing(computed, dtype, monkeypatch):
    if computed != "one after another":
        monkeypatch.setattr(experts, "ROW_MULTIPLE", 1)
        monkeypatch.setattr(experts, "grouped_mm_serves", lambda *_: True)
    if "10" in computed:
        monkeypatch.setattr(F, "grouped_mm", filled_with_anything_where_empty)
    # What a gradient's memory held before must not show.
    anything = {True: math.nan, False: 0}
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, anything[t.is_floating_point()]))
    moe = layer()
    with torch.no_grad():
        moe.router.weight[3] = 0
        moe.router.weight[:3] += 2
    x = inputs().abs()
    y, routing = moe(x.to(dtype))
    y.float().square().sum().backward()
    assert routing.slots_per_expert_E[3] == 0 and routing.slots_per_expert_E.sum() == 3 * 11 * 2
    for parameter in (moe.up.weight, moe.up.bias, moe.down.weight, moe.down.bias):
        assert not parameter.grad[3].any() and parameter.grad[:3].flatten(1).abs().sum(1).min() > 0
        assert parameter.grad.isfinite().all()
    if dtype == torch.float32:
        torch.testing.assert_close(y, token_by_token(moe, x), atol=1e-4, rtol=1e-4)


def test_losses_have_the_value_of_a_hand_calculation_and_reach_the_router():
    moe = layer()
    x = inputs()
    _, routing = moe(x)
    logits = x.flatten(0, 1) @ moe.router.weight.T
    probability = logits.exp() / logits.exp().sum(-1, keepdim=True)
    share = torch.zeros(4)
    for row in logits.topk(2).indices:
        share[row] += 1 / (2 * len(logits))
    balance = 4 * sum(share[e] * probability[:, e].mean() for e in range(4))
    z = (logits.exp().sum(-1).log() ** 2).mean()
    torch.testing.assert_close(routing.load_balancing_loss, balance)
    torch.testing.assert_close(routing.z_loss, z)
    total = router_loss([routing, routing], balance_weight=0.01, z_weight=0.001)
    torch.testing.assert_close(total, 0.01 * balance + 0.001 * z)
    total.backward()
    assert moe.router.weight.grad.abs().max() > 0


def test_balance_loss_is_one_when_balanced_and_n_experts_when_collapsed():
    moe = layer()
    balanced = moe.routing(torch.zeros(8, 4), torch.tensor([4, 4, 4, 4]))
    collapsed = moe.routing(torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1), torch.tensor([16, 0, 0, 0]))
    assert balanced.load_balancing_loss.item() == pytest.approx(1.0)
    assert collapsed.load_balancing_loss.item() == pytest.approx(4.0)


def test_router_stays_in_fp32_under_bf16_and_autocast():
    moe = layer()
    x = inputs().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = moe.router(x.flatten(0, 1))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, x.flatten(0, 1).float() @ moe.router.weight.T)
