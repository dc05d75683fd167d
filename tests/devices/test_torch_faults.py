"""What torch computes wrongly on a device, by shape: the product asks for none of it, and the rehearsal knows all of it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from config import PRESETS
from models import Transformer, build_dense_model, build_moe_model, experts, loss, products
from models.generation import continuations
from tests.devices import torch_faults
from tests.devices.pretend_device import DeviceFault
from tests.devices.pretending import pretending
from training import device as device_module
from training.heldout import heldout_loss
from training.self_check import find_fault
from training.step import prepare_training, train_step
from transfer.liveness import expert_cosines

GPT2 = 50_257
SMALL = dataclasses.replace(
    PRESETS["tiny"], d_model=32, n_heads=2, n_layers=1, n_experts=4, context_length=16, batch_size=4
)
CARD = dataclasses.replace(PRESETS["reference"], batch_size=8)
# More rows than one sum may have on MPS, in sequences of the card's length.
LARGE_BATCH = 32_768 // CARD.context_length


def tokens(n_rows: int, context_length: int, vocab_size: int = GPT2):
    return torch.randint(vocab_size, (n_rows, context_length + 1), generator=torch.Generator().manual_seed(0))


def step_on(kind: str, model: Transformer, batch, config=SMALL, dtype=None, is_lean=False) -> Transformer:
    model = model.to(kind)
    optimizers = prepare_training(model, config, dtype, is_lean)
    train_step(model, optimizers, device_module.to_device(batch, model.device), 0.01, config)
    optimizers[0].leave_parameters()
    return model


def small_moe(vocab_size: int = GPT2, **changes) -> Transformer:
    geometry = SMALL.dense_geometry(vocab_size).upcycled(SMALL.n_experts, SMALL.top_k)
    return build_moe_model(dataclasses.replace(geometry, **changes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_step_and_a_story_at_50_257_ids_on_mps(dtype):
    with pretending("mps"):
        for is_lean in (False, True):
            model = step_on("mps", small_moe(), tokens(4, 16), dtype=dtype, is_lean=is_lean)
        assert len(continuations(model, [[1, 2], [3]], 3, end_of_text=0)) == 2


@pytest.mark.parametrize("batch_size", [CARD.batch_size, LARGE_BATCH])
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_dense_step_and_an_evaluation_of_the_card_and_of_32_768_tokens_on_mps(batch_size, dtype):
    """Shapes alone: the model has the card's, and no numbers."""
    with pretending("mps", is_hollow=True):
        model = Transformer.empty(CARD.dense_geometry(GPT2))
        batch = tokens(batch_size, CARD.context_length)
        model = step_on("mps", model, batch, CARD, dtype)
        with pytest.raises(DeviceFault, match="asks a hollow device for numbers"):
            heldout_loss(model, [batch])  # at its end, when all shapes have passed


def test_experts_with_more_than_32_767_rows_each_on_mps():
    with pretending("mps"):
        model = small_moe(vocab_size=17, n_experts=2, top_k=2, d_model=16)
        step_on("mps", model, tokens(32_768 // 16, 16, 17))


def test_the_cosines_of_16_wide_experts_on_mps():
    with pretending("mps"):
        model = small_moe(vocab_size=17, n_experts=16, d_model=96)
        assert expert_cosines(model.to("mps"))


def test_experts_without_rows_on_capability_10():
    """Their gradient is whatever was in memory, here nan, unless somebody masks it."""
    with pretending("cuda", (10, 0)):
        model = small_moe(vocab_size=17)
        with torch.no_grad():
            model.blocks[0].mlp_norm.bias.fill_(1.0)
            model.blocks[0].mlp.router.weight.zero_()[:2].fill_(1.0)  # the other two are chosen by no token
        model.compute_dtype = torch.bfloat16
        model = model.to("cuda")
        total, routings = loss.next_token_loss(model, tokens(4, 16, 17).to("cuda"))
        total.backward()
        assert routings[0].slots_per_expert_E.tolist() == [64, 64, 0, 0]
        for stack in (model.blocks[0].mlp.up, model.blocks[0].mlp.down):
            gradient = stack.weight.grad
            assert gradient[:2].cpu().isfinite().all() and gradient[:2].cpu().any()
            assert not gradient[2:].cpu().any()


@pytest.mark.parametrize("capability, expected", [((9, 0), 0.0), ((10, 0), torch.nan), ((10, 3), torch.nan)])
def test_capability_10_spoils_the_gradients_of_empty_groups(capability, expected):
    with pretending("cuda", capability):
        rows = torch.ones(4, 8, dtype=torch.bfloat16, device="cuda")
        ends = torch.tensor([4, 4], dtype=torch.int32, device="cuda")
        result = F.grouped_mm(rows.mT, rows, offs=ends).cpu()
    torch.testing.assert_close(result[0], torch.full_like(result[0], 4.0))
    torch.testing.assert_close(result[1], torch.full_like(result[1], expected), equal_nan=True)


def mask_nothing(tensor, mask, value):
    return tensor


def in_one_product(part_NM, a_NK, b_KM):
    torch.mm(a_NK, b_KM, out=part_NM) if part_NM.dtype == a_NK.dtype else part_NM.copy_(a_NK @ b_KM)


def without_waiting(batch, place):
    return batch.to(place, non_blocking=True)


@pytest.mark.parametrize(
    "owner, name, broken, fault, vocab_size, n_rows",
    [
        (products, "longest_sum", lambda place: 2**63 - 1, "#195163.*long_product", GPT2, 4),
        (products, "longest_sum", lambda place: 2**63 - 1, "#195163.*train_step", 97, 2_048),
        (loss, "product_into", in_one_product, "#195163.*in_one_product", GPT2, 4),
        (experts, "product_into", in_one_product, "#193385.*in_one_product", GPT2, 4),
        (loss, "tokens_per_chunk", lambda *_: 2**20, "#122045.*forward", GPT2, 640),
        (device_module, "to_device", without_waiting, "#189690.*without_waiting", GPT2, 4),
    ],
)
def test_a_product_with_the_fault_is_caught(owner, name, broken, fault, vocab_size, n_rows, monkeypatch):
    """In a step of a small MoE, or of a dense model of many rows, whose shapes are enough."""
    monkeypatch.setattr(owner, name, broken)
    is_large = n_rows > 4
    with pretending("mps", is_hollow=is_large):
        model = build_dense_model(SMALL.dense_geometry(vocab_size)) if is_large else small_moe(vocab_size)
        with pytest.raises(DeviceFault, match=fault):
            step_on("mps", model, tokens(n_rows, 16, vocab_size))


def test_the_self_check_passes_at_50_257_ids_and_finds_a_product_that_is_wrong_there(monkeypatch):
    largest = dataclasses.replace(small_moe(vocab_size=17).config, vocab_size=GPT2)

    def sum_what_lies_behind(device, call, result):
        if call.name in torch_faults.PRODUCTS and torch_faults.long_inner_dimension(call):
            result.mul_(1.2)

    with pretending("mps") as device:
        for dtype in (torch.float32, torch.bfloat16):
            assert find_fault(device.place, dtype, largest, 64) == ""
        device.before.remove(torch_faults.refuse_known_faults)
        device.after.append(sum_what_lies_behind)
        assert find_fault(device.place, torch.float32, largest, 64) == "", "there is no such product"
        monkeypatch.setattr(products, "longest_sum", lambda place: 2**63 - 1)
        assert "the loss's gradients of hidden units differ" in find_fault(device.place, torch.float32, largest, 64)


def test_a_batched_product_of_more_than_2_to_the_32_elements_is_caught():
    with pretending("mps", is_hollow=True):
        left, right = torch.empty(64, 8_192, 64, device="mps"), torch.empty(64, 64, 8_192, device="mps")
        assert (left[:, :8_191] @ right[:, :, :8_191]).shape == (64, 8_191, 8_191)
        with pytest.raises(DeviceFault, match="#197636"):
            torch.cat((left, left[:1])) @ torch.cat((right, right[:1]))


def test_a_sort_along_strides_is_caught():
    with pretending("mps"):
        x = torch.tensor([[3, 1], [2, 0]], device="mps")
        assert x.sort().values.tolist() == [[1, 3], [0, 2]]
        with pytest.raises(DeviceFault, match="#175187"):
            x.T.sort()


@pytest.mark.parametrize("inner, outer, is_wrong", [(32_766, 16, False), (32_767, 16, True), (32_767, 15, False)])
def test_from_which_shape_on_a_product_is_wrong(inner, outer, is_wrong):
    with pretending("mps", is_hollow=True):
        left, right = torch.empty(outer, inner, device="mps"), torch.empty(inner, 16, device="mps")
        bias = torch.empty(16, device="mps")
        for multiply in (
            lambda: left @ right,
            lambda: torch.addmm(bias, left, right),
            lambda: left[None] @ right[None],
        ):
            if is_wrong:
                with pytest.raises(DeviceFault, match="inner dimension"):
                    multiply()
            else:
                multiply()
