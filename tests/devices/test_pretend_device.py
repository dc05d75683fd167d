"""The pretended device itself: it computes what the CPU does, and refuses and notes what a real one would."""

import copy
import io

import pytest
import torch

from model_config import ModelConfig
from models import build_moe_model, next_token_loss, transformer
from tests.devices import conftest, mps_kernels
from tests.devices.cpu_as_device import as_on
from tests.devices.pretend_device import DeviceFault, Wait
from tests.devices.pretending import pretending
from transfer import liveness, simple_growth
from transfer.random_streams import parameter_generator

GEOMETRY = ModelConfig(97, 32, 2, 2, n_experts=4, context_length=16)
TOKENS = torch.randint(97, (4, 17), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(kind: str, dtype: torch.dtype | None) -> list[torch.Tensor]:
    model = build_moe_model(GEOMETRY).to(kind)
    model.compute_dtype = dtype
    loss, _ = next_token_loss(model, TOKENS.to(kind))
    loss.backward()
    return [loss.detach().cpu(), *(parameter.grad.cpu() for parameter in model.parameters())]


@pytest.mark.parametrize("kind, dtype", [("mps", None), ("mps", torch.bfloat16), ("cuda", None)])
def test_its_loss_and_gradients_are_the_cpus_bit_for_bit(kind, dtype):
    """On CUDA in bf16 the experts are one grouped_mm, which rounds otherwise than a CPU's loop."""
    with pretending(kind):
        found = loss_and_gradients(kind, dtype)
    with as_on(kind):
        expected = loss_and_gradients("cpu", dtype)
    assert len(found) == len(expected) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_kernel_that_rounds_otherwise_is_told_from_the_cpus():
    def round_otherwise(device, call, result):
        if call.name == "gelu":
            result.mul_(1 + 1e-6)

    with pretending("mps") as device:
        device.after.append(round_otherwise)
        found = loss_and_gradients("mps", None)
    with as_on("mps"):
        expected = loss_and_gradients("cpu", None)
    assert not all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("kind", ["mps", "cuda"])
def test_its_tensors_are_there_and_keep_their_numbers(kind):
    with pretending(kind) as device:
        x = torch.arange(6.0, device=kind).view(2, 3)
        assert (x.device, x.is_mps, x.is_cuda, x.is_cpu) == (
            torch.device(kind, 0),
            kind == "mps",
            kind == "cuda",
            False,
        )
        made = [
            torch.zeros_like(x),
            x.new_ones(2),
            torch.empty(3, device=kind),
            torch.tensor([1.0], device=kind),
            x.T + 1,
        ]
        assert all(tensor.device == x.device for tensor in made)
        assert x[[1]].tolist() == [[3.0, 4.0, 5.0]] and f"{x[1, 2]:.1f}" == "5.0"
        assert x.to(x.device).value.data_ptr() == x.value.data_ptr(), "no copy"
        twin = copy.deepcopy(x)
        twin.zero_()
        assert x.cpu().sum() == 15
        with torch.device("meta"):
            assert torch.empty(2).device.type == "meta", "who asks for meta gets meta"
        file = io.BytesIO()
        device.forget()
        torch.save({"x": x}, file)
        assert [wait.what for wait in device.waits] == ["copy to the host"]
        assert torch.load(io.BytesIO(file.getvalue()), weights_only=True)["x"].tolist() == x.tolist()
    assert not torch.cuda.is_available() and not torch.backends.mps.is_available()


def refused(kind: str, text: str, action) -> None:
    with pretending(kind), pytest.raises(DeviceFault, match=text):
        action()


def test_what_it_refuses():
    for kind in ("mps", "cuda"):
        on = {"device": kind}
        refused(kind, "CPU tensor", lambda: torch.ones(2, **on) + torch.ones(2))
        refused(kind, "CPU tensor", lambda: torch.stack((torch.ones((), **on), torch.ones(()))))
        refused(kind, "a generator of cpu", lambda: torch.empty(2, **on).normal_(generator=torch.Generator()))
    for action in (
        lambda: torch.ones(2, dtype=torch.float64, device="mps"),
        lambda: torch.ones(2, dtype=torch.float64).to("mps"),
        lambda: torch.ones(2, device="mps").double(),
    ):
        refused("mps", "float64", action)
    with pretending("cuda"):
        assert (torch.ones(2, device="cuda").double() * torch.tensor(2.0)).sum() == 4, (
            "CUDA has fp64, a number is no tensor"
        )
        assert torch.randn(2, generator=torch.Generator("cuda"), device="cuda").device.type == "cuda"


def test_a_product_that_mixes_devices_is_caught(monkeypatch):
    tables = transformer.rope_tables
    monkeypatch.setattr(transformer, "rope_tables", lambda config, n, _, dtype: tables(config, n, "cpu", dtype))
    for kind in ("mps", "cuda"):
        refused(kind, "CPU tensor .* apply_rope", lambda: loss_and_gradients(kind, None))


def test_a_growth_that_draws_elsewhere_is_caught(monkeypatch):
    monkeypatch.setattr(
        simple_growth, "parameter_generator", lambda seed, name, _: parameter_generator(seed, name, "cpu")
    )
    for kind in ("mps", "cuda"):
        refused(
            kind,
            "a generator of cpu",
            lambda: simple_growth.scale_bilaterally(build_moe_model(GEOMETRY).to(kind), 2, 1),
        )


def effective_rank_on_the_device(weight):
    return torch.linalg.eigvalsh(weight @ weight.T).sum().item()


def test_a_report_in_fp64_or_without_a_kernel_on_mps_is_caught(monkeypatch):
    def report():
        liveness.block_effective_ranks(build_moe_model(GEOMETRY).to("mps"), 0)

    with pretending("mps") as device:
        report()
        assert mps_kernels.without_kernel(device.operators) == []
        monkeypatch.setattr(liveness, "effective_rank_share", effective_rank_on_the_device)
        report()
        assert mps_kernels.without_kernel(device.operators) == ["_linalg_eigh"]
    monkeypatch.setattr(liveness, "effective_rank_share", lambda weight: weight.double().sum().item())
    refused("mps", "float64", report)


def test_the_list_of_kernels():
    there = (
        "mm",
        "mm.out",
        "add.Tensor",
        "_to_copy",
        "gelu_backward",
        "_fused_adamw_",
        "view",
        "linear",
        "_grouped_mm",
    )
    assert mps_kernels.without_kernel(there) == []
    assert mps_kernels.without_kernel(["nobody.knows_it", "_linalg_eigh", "mm"]) == ["_linalg_eigh", "nobody.knows_it"]


def test_a_hollow_device_has_shapes_and_no_numbers():
    with pretending("mps", is_hollow=True):
        x = torch.zeros(2**20, 2**20, device="mps") @ torch.zeros(2**20, 3, device="mps")[:, :3].contiguous()
        assert x.shape == (2**20, 3)
        for read in (x.sum().item, x.cpu, x.nonzero):
            with pytest.raises(DeviceFault, match="hollow"):
                read()


def test_waits_have_the_place_that_asked():
    with pretending("cuda") as device:
        torch.ones(3, device="cuda").sum().item()
        assert dict(device.waits) == {
            Wait("a number is read", "tests/devices/test_pretend_device.py", "test_waits_have_the_place_that_asked"): 1
        }


def test_another_torch_is_told_why_there_is_no_rehearsal():
    assert conftest.why_not(torch.__version__) == ""
    assert conftest.why_not("2.14.0+cu130").endswith("of torch 2.13.0, and this is torch 2.14.0+cu130")
