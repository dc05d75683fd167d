"""The plan of a run's memory, against what is kept."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from command_line import is_out_of_memory
from config import PRESETS, ModelConfig, TrainingConfig, UserError
from models import count_parameters, next_token_loss
from models.lean import keep_weights
from test_growth_checks import lively_dense_model, lively_moe_model
from training import machine as machine_module
from training.machine import Machine
from training.memory import activation_bytes, layer_bytes
from training.optimizer import build_optimizers, moment_bytes, read_moments
from training.plan import make_plan, require_memory

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, context_length=16)
CPU = torch.device("cpu")


@pytest.mark.parametrize("is_lean", [False, True])
def test_planned_moments_are_those_that_the_optimizers_keep(is_lean):
    for model in (lively_dense_model(SMALL), lively_moe_model(SMALL)):
        optimizers = build_optimizers(model, 0.1, 32, 1.0 if is_lean else None)
        next_token_loss(model, torch.randint(101, (2, 17)))[0].backward()
        for optimizer in optimizers:
            optimizer.step()
        state = read_moments(model, optimizers)
        kept = sum(t.nbytes for moments in state.values() for t in moments.values() if t.dim())
        assert moment_bytes(model.config, is_lean) == kept


def kept_by_autograd(model, tokens: torch.Tensor) -> int:
    """Bytes that the backward pass of the loss needs of the forward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = next_token_loss(model, tokens)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("kind, is_lean", [("dense", False), ("dense", True), ("moe", False), ("moe", True)])
@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_planned_activations_are_those_that_autograd_keeps(kind, is_lean, compute_dtype):
    """On MPS as on a CPU that is held to torch's composite attention, the one that is differentiable there."""
    config = ModelConfig(vocab_size=16, d_model=128, n_layers=4, n_heads=4, context_length=256)
    model = (lively_dense_model if kind == "dense" else lively_moe_model)(config)
    model.compute_dtype = compute_dtype
    model.keep_hidden(not is_lean)
    keep_weights(model, in_two_parts=is_lean)
    tokens = torch.randint(16, (4, 257))
    for device, attention in (("cpu", SDPBackend.FLASH_ATTENTION), ("mps", SDPBackend.MATH)):
        with sdpa_kernel(attention):
            measured = kept_by_autograd(model, tokens)
        of_layer, passing = layer_bytes(model.config, 4 * 256, torch.device(device), compute_dtype, is_lean)
        of_norm = (4 + (4 if compute_dtype is None else 2)) * 4 * 256 * 128
        assert 4 * of_layer + of_norm == pytest.approx(measured, rel=0.12), device
        assert (passing == 0) == (device == "cpu" and not is_lean)
        whole = activation_bytes(model.config, 4 * 256, torch.device(device), compute_dtype, is_lean)
        assert whole - 4 * of_layer - of_norm >= passing


def test_the_card_is_planned_on_mps_with_its_attention():
    """One T × T a head and layer in fp32: 34 MB at a context of 256 tokens, and 0.5 GB at 1,024. With lean memory they are
    there for one layer, when the logits are gone."""
    card = TrainingConfig()
    large = card.phase_geometries(50_257)[2]
    for context_length, megabytes in ((256, 33.55), (1024, 536.9)):
        model = dataclasses.replace(large, context_length=context_length)
        tokens = 8 * context_length
        for is_lean in (False, True):
            (kept_cuda, passing_cuda), (kept_mps, passing_mps) = (
                layer_bytes(model, tokens, torch.device(device), torch.bfloat16, is_lean) for device in ("cuda", "mps")
            )
            n_kept, n_passing = (0, 3) if is_lean else (1, 2)
            assert kept_mps - kept_cuda == pytest.approx(n_kept * megabytes * 1e6, rel=1e-3)
            assert passing_mps - passing_cuda == pytest.approx(n_passing * megabytes * 1e6, rel=1e-3)


def plan_of(config, vocab_size, compute_dtype=None):
    return make_plan(config, config.dense_geometry(vocab_size), Machine.now(CPU, compute_dtype))


def test_plan_of_the_card(monkeypatch):
    monkeypatch.setattr(machine_module, "available_bytes", lambda device: 24e9)
    plan = plan_of(dataclasses.replace(TrainingConfig(), memory="full"), 50_257)
    table = plan.table()
    for text in ("832 × 7 × 8", "100.04 M", "371.64 M", "138.88 M", "1664 × 11 × 16", "2155.79 M", "693.26 M"):
        assert text in table
    assert "Phase 3 will not fit. --memory lean needs" in plan.advice
    with pytest.raises(UserError, match="will not fit.*--ignore-memory-plan"):
        require_memory(plan, ignore=False)
    require_memory(plan, ignore=True)
    auto = plan_of(TrainingConfig(), 50_257, torch.bfloat16)
    assert auto.is_lean and not auto.advice and auto.peak < 12e9
    monkeypatch.setattr(machine_module, "available_bytes", lambda device: 64e9)
    assert not plan_of(TrainingConfig(), 50_257).is_lean
    assert plan_of(PRESETS["tiny"], 4_097).advice == ""


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for an eltwise primitive"))
    assert not is_out_of_memory(ValueError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_plan_counts_what_the_models_have():
    plan = plan_of(PRESETS["tiny"], 4_097)
    assert [count.total for count in plan.counts] == [count_parameters(model).total for model in plan.models]
