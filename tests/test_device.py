"""The device: its self-check, its precision, how batches get there."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from config import PRESETS, ModelConfig, TrainingConfig, UserError
from models import attention as attention_module
from models import experts as experts_module
from models import loss as loss_module
from models import products
from training import device as device_module
from training import self_check

CPU = torch.device("cpu")

# A run whose vocabulary is longer than a sum on MPS may be, and that is small in everything else.
LARGEST = ModelConfig(vocab_size=33_000, d_model=16, n_layers=1, n_heads=2, n_experts=8, top_k=2, context_length=16)
# As a Llama, with gated experts and keys that two heads share.
LLAMA = {"architecture": "llama", "queries_per_kv": 2, "hidden_ratio": 2.75}


def find_fault(dtype: torch.dtype, largest: ModelConfig = LARGEST) -> str:
    return self_check.find_fault(CPU, dtype, largest, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n_experts": 3},
        {"n_experts": 2, "top_k": 1},
        {"n_experts": 1, "top_k": 1},
        {"n_experts": 0},
        {"vocab_size": 7},
        LLAMA,
        LLAMA | {"n_experts": 0},
    ],
    ids=str,
)
def test_device_check_finds_nothing_on_this_cpu(dtype, change):
    assert find_fault(dtype, dataclasses.replace(LARGEST, **change)) == ""


@pytest.mark.parametrize("preset, vocab_size", [("tiny", 4_097), ("reference", 50_257)])
def test_shapes_of_the_check_are_those_of_the_run(preset, vocab_size):
    config = PRESETS["tiny"] if preset == "tiny" else TrainingConfig()
    model = config.phase_geometries(vocab_size)[2]
    of_run = self_check.Shapes.of(model, 2048, torch.device("mps"))
    d_qkv = 3 * model.d_model
    assert of_run == self_check.Shapes(2048, model.d_model, model.d_hidden, vocab_size, 4, 2, d_qkv, is_llama=False)
    llama = dataclasses.replace(model, **LLAMA)
    of_llama = self_check.Shapes.of(llama, 2048, torch.device("mps"))
    assert (of_llama.d_qkv, of_llama.d_hidden, of_llama.is_llama) == (2 * model.d_model, llama.d_hidden, True)
    # Rows of two chunks of the loss at most, and on a CPU few, of few features.
    assert self_check.Shapes.of(model, 100_000, torch.device("cuda")).n_rows == 8192
    on_cpu = self_check.Shapes.of(model, 2048, CPU)
    assert (on_cpu.n_rows, on_cpu.vocab_size) == (16, vocab_size) and on_cpu.d_model <= 256


def test_device_check_catches_attention_that_sees_the_future(monkeypatch):
    attention = F.scaled_dot_product_attention

    # As on MPS up to torch 2.12: bf16 alone leaks.
    def leaky(q, k, v, is_causal):
        return attention(q, k, v, is_causal=is_causal and q.dtype != torch.bfloat16)

    monkeypatch.setattr(F, "scaled_dot_product_attention", leaky)
    monkeypatch.setitem(self_check.TOLERANCE, torch.bfloat16, 10.0)  # so that only the leak tells
    assert "future token" in find_fault(torch.bfloat16)
    said = []
    config = dataclasses.replace(TrainingConfig(), d_model=32, n_heads=2)
    assert device_module.choose_precision(CPU, config, LARGEST, said.append) is None
    assert "bf16 is not used" in said[0]
    with pytest.raises(UserError, match="bf16, .*future token.*--precision fp32"):
        device_module.choose_precision(CPU, dataclasses.replace(config, precision="bf16"), LARGEST, said.append)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["no attention", "no experts", "no GELU", "wrong experts", "no positions"])
def test_device_check_catches_kernels_that_compute_something_else(fault, dtype, monkeypatch):
    attention, linear = F.scaled_dot_product_attention, experts_module.expert_linear
    faulty = {
        "no attention": (F, "scaled_dot_product_attention", lambda q, k, v, is_causal: 0 * attention(q, k, v)),
        "no experts": (experts_module, "expert_linear", lambda *a: 0 * linear(*a)),
        "no GELU": (F, "gelu", lambda x: x),
        "wrong experts": (
            experts_module,
            "expert_linear",
            lambda x, stack, b, run: linear(x, (stack[0].flip(0), None), b, run),
        ),
        "no positions": (attention_module, "apply_rope", lambda x, cos, sin: 1 * x),
    }[fault]
    right = self_check.logits_and_gradients
    calls = []

    def device_errs(model, tokens):
        calls.append(model)
        if len(calls) % 2:  # the CPU's
            return right(model, tokens)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*faulty)
            return right(model, tokens)

    monkeypatch.setattr(self_check, "logits_and_gradients", device_errs)
    assert "differ from the CPU's by" in find_fault(dtype)


class FaultyProducts(TorchDispatchMode):
    """What is computed inside meets one of torch's faults."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket not in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            return func(*args, **kwargs)
        a, b = args[-2:]
        out = kwargs.get("out")
        if self.fault == "parts are never written" and out is not None and out.storage_offset():
            return out
        result = func(*args, **kwargs)
        if self.fault == "sums read too far" and a.shape[-1] >= 32_767 and min(len(a), b.shape[-1]) >= 16:
            # A tile of terms behind the last: the beginning of a's next row, times what lies behind b.
            after = b.storage_offset() + len(b) * b.stride(0)
            if after + 8 * b.stride(0) <= b.untyped_storage().nbytes() // b.element_size():
                result += a.roll(-1, 0)[:, :8] @ b.as_strided((8, b.shape[1]), b.stride(), after)
        return result


def computed_with(fault: str, monkeypatch) -> None:
    right = self_check.on_device

    def on_faulty_device(*arguments, **named):
        with FaultyProducts(fault):
            return right(*arguments, **named)

    monkeypatch.setattr(self_check, "on_device", on_faulty_device)


def test_device_check_catches_long_sums_that_read_too_far_and_sums_in_slices_do_not(monkeypatch):
    computed_with("sums read too far", monkeypatch)
    assert "the loss's gradients of hidden units differ" in find_fault(torch.float32)
    monkeypatch.setattr(self_check, "LARGE", 0.0)
    assert find_fault(torch.float32) == "", "where all around is zero, such a fault does not show"
    monkeypatch.undo()
    computed_with("sums read too far", monkeypatch)
    monkeypatch.setattr(products, "longest_sum", lambda device: products.MPS_LONGEST_SUM)
    assert find_fault(torch.float32) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_check_catches_what_a_llamas_products_alone_meet(dtype, monkeypatch):
    llama = dataclasses.replace(LARGEST, **LLAMA)
    activated, product_into = experts_module.activated, experts_module.product_into

    def fault(model: ModelConfig) -> str:
        return self_check.fault_of_products(CPU, dtype, model, 64)

    def exchanged(x, is_gated):
        return activated(torch.cat(x.chunk(2, -1)[::-1], -1) if is_gated else x, is_gated)

    def wrong_for_gate_and_up(part, a, b):
        product_into(part, a, b)
        if part.shape == (2 * llama.d_hidden, llama.d_model):
            part.zero_()

    for name, wrong, what in (
        ("activated", exchanged, "experts' outputs"),
        ("product_into", wrong_for_gate_and_up, "experts' gradients of up"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experts_module, name, wrong)
            assert f"{what} differ" in fault(llama) and fault(LARGEST) == ""


def test_device_check_catches_parts_that_are_never_written(monkeypatch):
    computed_with("parts are never written", monkeypatch)
    assert "experts' gradients of up differ" in find_fault(torch.float32)
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: 9)
    assert "the loss's gradients of hidden units differ" in find_fault(torch.float32)
    # As on MPS: by a copy.
    monkeypatch.setattr(products, "product_into", lambda part, a, b: part.copy_(products.long_product(a, b)))
    monkeypatch.setattr(experts_module, "product_into", products.product_into)
    monkeypatch.setattr(loss_module, "product_into", products.product_into)
    assert find_fault(torch.float32) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_check_catches_gradients_of_experts_without_tokens(dtype, monkeypatch):
    grouped_mm = F.grouped_mm

    def leaves_anything(mat_a, mat_b, *, offs):
        result = grouped_mm(mat_a, mat_b, offs=offs)
        if mat_b.dim() == 2:
            result[offs.diff(prepend=offs.new_zeros(1)) == 0] = 3.0
        return result

    monkeypatch.setattr(experts_module, "ROW_MULTIPLE", 1)
    monkeypatch.setattr(experts_module, "grouped_mm_serves", lambda *_: True)
    monkeypatch.setattr(F, "grouped_mm", leaves_anything)
    assert find_fault(dtype) == "", "they are masked"
    monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda tensor, mask, value: tensor)
    assert "experts' gradients of up differ" in find_fault(dtype)


@pytest.mark.parametrize("name", ["linear", "ChunkedCrossEntropy", "apply_experts"])
def test_device_check_catches_a_row_that_is_wrong(name, monkeypatch):
    """In what the parts of a model return, or in the gradient of what they are given."""
    right = getattr(self_check, name)

    class OneRowDoubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, dx):
            dx = dx.clone()
            dx[-1] *= 2
            return dx

    def wrong(first, *rest):
        return (right.apply if name == "ChunkedCrossEntropy" else right)(OneRowDoubled.apply(first), *rest)

    monkeypatch.setattr(self_check, name, SimpleNamespace(apply=wrong) if name == "ChunkedCrossEntropy" else wrong)
    for dtype in (torch.float32, torch.bfloat16):
        assert "gradients of" in find_fault(dtype)


def test_a_device_without_memory_for_the_check_is_out_of_memory_and_not_at_fault(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(self_check, "fault_of_products", full)
    with pytest.raises(torch.OutOfMemoryError):
        find_fault(torch.float32)


def test_a_device_that_fails_in_fp32_is_refused(monkeypatch):
    monkeypatch.setattr(device_module, "find_fault", lambda *_: "logits differ")
    with pytest.raises(UserError, match="device self-check: on cpu, fp32, logits differ.*--device cpu"):
        device_module.choose_precision(CPU, PRESETS["tiny"], LARGEST, print)


def test_precision_is_chosen_by_timing_with_a_margin(monkeypatch):
    config = dataclasses.replace(TrainingConfig(), d_model=32, n_heads=2)
    for seconds_of_bf16, chosen in ((0.5, torch.bfloat16), (0.95, None), (2.0, None)):
        monkeypatch.setattr(
            device_module, "seconds_per_pass", lambda block, rows, device, dtype, s=seconds_of_bf16: s if dtype else 1.0
        )
        assert device_module.choose_precision(CPU, config, LARGEST, lambda line: None) == chosen


@pytest.mark.parametrize("kind, asked", [("cuda", [True]), ("mps", [False]), ("cpu", [False])])
def test_only_pinned_memory_to_cuda_is_copied_without_waiting(kind, asked):
    class Tokens:
        is_pinned = False
        calls = []

        def pin_memory(self):
            pinned = Tokens()
            pinned.is_pinned = True
            return pinned

        def to(self, device, non_blocking=False):
            assert device.type == kind and self.is_pinned == non_blocking
            self.calls.append(non_blocking)
            return self

    device_module.to_device(Tokens(), torch.device(kind))
    assert Tokens.calls == asked


def test_an_old_torch_on_a_mac_is_refused():
    device_module.require_fixed_mps("2.13.0")
    with pytest.raises(UserError, match="torch 2.13 or newer is required"):
        device_module.require_fixed_mps("2.12.1")
