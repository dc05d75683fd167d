"""Lean memory: the same training, with less of it in memory at once; batches in parts."""

import dataclasses
import math

import pytest
import torch

from config import PRESETS, ModelConfig, UserError
from models.lean import keep_weights, layers_in_parts, split
from models.moe import MoE
from models.shards import whole_parameter
from test_growth_checks import lively_dense_model, lively_moe_model
from training.machine import Machine
from training.optimizer import is_matrix, read_moments, write_moments
from training.plan import memory_of_phases
from training.step import prepare_training, train_step
from transfer.optimizer_growth import widened

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=3, n_heads=4, context_length=16)
CONFIG = dataclasses.replace(PRESETS["tiny"], z_weight=0.0, balance_weight=0.0)


def batch(seed: int, n: int = 8) -> torch.Tensor:
    return torch.randint(101, (n, 17), generator=torch.Generator().manual_seed(seed))


def trained(build, steps: int, is_lean: bool, config=CONFIG):
    """A model after some steps, its optimizers, and each step's loss and gradient norm."""
    model = build(SMALL)
    optimizers = prepare_training(model, config, None, is_lean)
    figures = []
    for step in range(steps):
        loss, _, norm = train_step(model, optimizers, batch(0), 0.01, config)
        figures.append((loss.item(), norm.item()))
    return model, optimizers, figures


@pytest.mark.parametrize("build", [lively_dense_model, lively_moe_model])
def test_lean_and_full_memory_learn_the_same(build):
    """Apart from rounding, and a gradient clipped by the norm of the step before. Training reads bf16 weights: before the
    first step nothing else differs, the norm but for gradients in bf16 neither."""
    gentle = dataclasses.replace(CONFIG, grad_clip=1e3)
    full, lean = (trained(build, 10, is_lean, gentle) for is_lean in (False, True))
    # Weights and gradients round to 2⁻⁹ of themselves, and momenta to about 1 %: so much of what was learnt may differ. Of a
    # mixture one of N tokens may take another expert besides: of gradients that are independent, each is 1/√N of the sum.
    turned = 2 / math.sqrt(batch(0)[:, 1:].numel()) if build is lively_moe_model else 0.0
    for (loss, norm), (lean_loss, lean_norm) in zip(full[2], lean[2]):
        learnt = full[2][0][0] - loss
        assert lean_loss == pytest.approx(loss, abs=2e-3 + 0.01 * learnt)
        assert lean_norm == pytest.approx(norm, rel=2e-2 + turned)
    assert full[2][-1][0] < full[2][0][0] - 0.05
    keep_weights(rounded := build(SMALL), in_two_parts=True)
    keep_weights(rounded, in_two_parts=False)
    for layer in layers_in_parts(rounded):
        layer.weight.data = split(layer.weight)[0].float()
    loss, norm = trained(lambda _: rounded, 1, False, gentle)[2][0]
    assert lean[2][0][0] == pytest.approx(loss, rel=1e-6)
    assert lean[2][0][1] == pytest.approx(norm, rel=2**-8) and lean[2][0][1] != pytest.approx(full[2][0][1], rel=1e-6)


@pytest.mark.parametrize("is_lean", [False, True])
def test_gradients_of_two_matrices_never_exist_at_once(is_lean):
    """Those of one layer's experts come together: two stacks. With full memory all of them are there in the end."""
    model = lively_moe_model(SMALL)
    most = [0]

    def count(parameter):
        alive = [n for n, p in model.named_parameters() if is_matrix(n) and p.grad is not None]
        most[0] = max(most[0], len(alive))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    optimizers = prepare_training(model, CONFIG, None, is_lean)
    before = [p.detach().clone() for p in model.parameters()]
    train_step(model, optimizers, batch(0), 0.01, CONFIG)
    n_matrices = sum(is_matrix(name) for name, _ in model.named_parameters())
    assert most[0] == (1 if is_lean else n_matrices)
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before) if p.dim() < 3)


def test_lean_memory_sets_up_model_and_state():
    model, optimizers, _ = trained(lively_moe_model, 2, is_lean=True)
    assert not any(module.keeps_hidden for module in model.modules() if isinstance(module, MoE))
    state = read_moments(model, optimizers)
    for name, moments in state.items():
        kinds = {key: value.dtype for key, value in moments.items() if value.dim()}
        assert kinds == (
            {"momentum_buffer": torch.int8, "momentum_scale": torch.float32}
            if is_matrix(name)
            else {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}
        )
    weights = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert all(dtype == (torch.bfloat16 if is_matrix(name) else torch.float32) for name, dtype in weights.items())
    exact = {name: whole_parameter(model, name) for name in weights}
    for lean, dtype in ((False, torch.float32), (True, torch.int8)):  # a run may go on in the other mode
        other = prepare_training(model, CONFIG, None, lean)
        write_moments(model, other, state)
        for name, parameter in model.named_parameters():
            assert torch.equal(whole_parameter(model, name), exact[name])
            assert parameter.dtype == (weights[name] if lean else torch.float32)
        momentum = read_moments(model, other)["blocks.0.attention.out.weight"]
        assert momentum["momentum_buffer"].dtype == dtype and len(momentum) == (4 if lean else 3)
        expected = widened(state["blocks.0.attention.out.weight"])["momentum_buffer"]
        assert torch.equal(widened(momentum)["momentum_buffer"], expected)


def test_the_norm_of_the_step_before_clips():
    steps = [trained(lively_dense_model, 2, is_lean=True, config=dataclasses.replace(CONFIG, grad_clip=clip))
             for clip in (1e3, 0.1)]  # fmt: skip
    norms = [figures[0][1] for *_, figures in steps]
    assert norms[0] == norms[1] > 0.1, "norms are those before clipping"
    states = [read_moments(model, optimizers)["blocks.0.mlp.up.weight"] for model, optimizers, _ in steps]
    assert states[0]["whole_norm"] == pytest.approx(steps[0][2][1][1])
    ratio = widened(states[1])["momentum_buffer"].norm() / widened(states[0])["momentum_buffer"].norm()
    assert ratio < 0.5


@pytest.mark.parametrize("build", [lively_dense_model, lively_moe_model])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_a_batch_add_up_to_it(build, parts):
    whole, split = (
        trained(build, 1, False, dataclasses.replace(CONFIG, accumulate=accumulate)) for accumulate in (1, parts)
    )
    assert whole[2][0] == pytest.approx(split[2][0], rel=1e-5)
    # The first moments, because an orthogonalised direction magnifies the rounding of small ones.
    for name, moments in read_moments(*whole[:2]).items():
        key = "momentum_buffer" if is_matrix(name) else "exp_avg"
        other = read_moments(*split[:2])[name][key]
        assert (moments[key] - other).norm() <= 1e-4 * moments[key].norm() + 1e-9


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_mixture_of_experts_in_parts_is_balanced_as_the_whole_batch(parts):
    """Gradients and figures, in fp64: sums of some thousand terms in another order differ by 1e-13 of them, not by 1e-10."""
    found = []
    for accumulate in (1, parts):
        config = dataclasses.replace(CONFIG, balance_weight=0.3, z_weight=1e-2, accumulate=accumulate)
        model = lively_moe_model(SMALL).double()
        optimizers = prepare_training(model, config, None, False)
        loss, layers, norm = train_step(model, optimizers, batch(0), 0.01, config)
        found.append((read_moments(model, optimizers), loss, layers, norm))
    (moments, loss, layers, norm), (of_parts, loss_of_parts, layers_of_parts, norm_of_parts) = found
    for name, of_whole in moments.items():
        key = "momentum_buffer" if is_matrix(name) else "exp_avg"
        assert (of_whole[key] - of_parts[name][key]).norm() <= 1e-10 * of_whole[key].norm(), name
    torch.testing.assert_close((loss_of_parts, norm_of_parts), (loss, norm), rtol=1e-10, atol=0)
    for whole_layer, layer in zip(layers, layers_of_parts, strict=True):
        assert torch.equal(whole_layer.slots_per_expert_E, layer.slots_per_expert_E)
        torch.testing.assert_close(tuple(layer[1:]), tuple(whole_layer[1:]), rtol=1e-10, atol=0)
        assert whole_layer.load_balancing_loss > 1.001, "there is something to balance"


def test_parts_take_less_memory_and_exclude_lean():
    cpu, dense = Machine(torch.device("cpu")), PRESETS["reference"].dense_geometry(50_257)
    whole, split = (
        memory_of_phases(dataclasses.replace(PRESETS["reference"], accumulate=n), dense, cpu, False)[0] for n in (1, 4)
    )
    assert split.activations < 0.6 * whole.activations and split.weights == whole.weights
    with pytest.raises(UserError, match="accumulate is 2, but with memory 'lean'.*--accumulate 1"):
        dataclasses.replace(CONFIG, accumulate=2, memory="lean").validate()
    with pytest.raises(UserError, match="accumulate is 9, must be at most batch_size, 8"):
        dataclasses.replace(CONFIG, accumulate=9).validate()
