"""Moments follow gradients through a boundary: pulled back, mapped, and through 50 steps of training."""

import copy
import dataclasses

import pytest
import torch
from test_growth import LLAMA
from torch import Tensor

from config import ModelConfig
from models import Transformer, next_token_loss
from test_growth_checks import lively_dense_model, lively_moe_model
from training.optimizer import (
    build_optimizers,
    is_matrix,
    muon_periods,
    read_moments,
    set_learning_rate,
    write_moments,
)
from transfer.growth_maps import GrowthMaps
from transfer.optimizer_growth import grow_optimizer_state, grown_gradient
from transfer.simple_growth import grown_parameter, scale_bilaterally
from transfer.upcycling import upcycle_to_moe

GEOMETRY = ModelConfig(vocab_size=61, d_model=16, n_layers=2, n_heads=4, context_length=12)
GEOMETRIES = {"neox": GEOMETRY, "llama": dataclasses.replace(LLAMA, vocab_size=61, context_length=12)}
NO_NOISE = torch.Generator()


def small_model(kind: str, architecture: str = "neox") -> Transformer:
    return {"dense": lively_dense_model, "moe": lively_moe_model}[kind](GEOMETRIES[architecture]).double()


def batch(step: int) -> Tensor:
    return torch.randint(61, (8, 13), generator=torch.Generator().manual_seed(step))


def gradients(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    next_token_loss(model, tokens)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def pulled_back(name: str, shape: torch.Size, maps: GrowthMaps, gradient: Tensor) -> Tensor:
    """Mᵀ g' for the weights' map M, by differentiating it."""
    old = torch.zeros(shape, dtype=gradient.dtype, requires_grad=True)
    grown_parameter(name, old, maps, 0.0, NO_NOISE).backward(gradient)
    return old.grad


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("factor", [1.25, 1.5, 2, 2.5, 3])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_gradients_of_the_grown_model_pull_back_to_those_of_the_old_one(kind, factor, noise):
    """Mᵀ g' = g holds for all factors, and with noise, since noise cancels for any weights."""
    old = small_model(kind)
    new = scale_bilaterally(old, factor, 0, noise)
    maps = GrowthMaps.between(old.config, new.config)
    g_old, g_new = gradients(old, batch(0)), gradients(new, batch(0))
    for name, g in g_old.items():
        assert grown_gradient(name, g, maps).is_contiguous(), "or every later step would be many times slower"
        torch.testing.assert_close(pulled_back(name, g.shape, maps, g_new[name]), g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 3])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_gradient_map_gives_the_gradients_of_a_model_grown_without_noise(kind, factor):
    old = small_model(kind)
    new = scale_bilaterally(old, factor, 3, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    g_old, g_new = gradients(old, batch(0)), gradients(new, batch(0))
    for name, actual in g_new.items():
        old_name = maps.old_name(name)
        if old_name is None:
            continue
        rows, _ = maps.axes(name)
        expected = grown_gradient(name, g_old[old_name], maps)
        if factor % 1 and rows is maps.residual:
            # The part that moves tiles against fillings is unknown to the old model: compare without it.
            expected, actual = (pulled_back(name, g_old[old_name].shape, maps, g) for g in (expected, actual))
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_a_map_that_forgets_the_copies_is_caught():
    old = small_model("dense")
    new = scale_bilaterally(old, 2, 0, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    g_old, g_new = gradients(old, batch(0)), gradients(new, batch(0))
    name = "blocks.0.mlp.up.weight"
    rows, columns = maps.axes(name)
    wrong = rows.written(columns.written(g_old[name]), dim=-2)
    assert not torch.allclose(wrong, g_new[name], rtol=0.4)


@pytest.mark.parametrize("architecture, factor", [("neox", 2), ("neox", 3), ("llama", 1.5), ("llama", 2), ("llama", 3)])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_grown_model_follows_the_old_one_through_50_steps_of_sgd(kind, architecture, factor):
    """Under the learning rates that make a mapped step of a mapped gradient: lr · M / G, element by element.

    Through a LayerNorm's mean fillings would move that the old model does not have; an RMSNorm's, zero, do not.
    """
    old = small_model(kind, architecture)
    new = scale_bilaterally(old, factor, 0, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    scales = {}
    for name, parameter in old.named_parameters():
        ones = torch.ones_like(parameter)
        mapped = grown_gradient(name, ones, maps)
        scales[name] = torch.where(mapped == 0, 0.0, grown_parameter(name, ones, maps, 0.0, NO_NOISE) / mapped)
    losses = {"old": [], "new": [], "same rate": []}
    naive = copy.deepcopy(new)
    for step in range(50):
        for key, model in (("old", old), ("new", new), ("same rate", naive)):
            loss, _ = next_token_loss(model, batch(step % 5))
            model.zero_grad()
            loss.backward()
            losses[key].append(loss.item())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter -= 0.1 * (scales[name] if key == "new" else 1.0) * parameter.grad
    assert losses["old"][-1] < losses["old"][0] - 0.1, "it has to learn something for the check to mean anything"
    assert max(abs(a - b) for a, b in zip(losses["old"], losses["new"])) < 1e-9
    assert max(abs(a - b) for a, b in zip(losses["old"], losses["same rate"])) > 1e-3


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_adams_first_update_after_growth_is_the_mapped_one(kind):
    """Adam divides by the gradient's size: a copied unit moves by as much as its old self."""
    old = small_model(kind)
    adam = torch.optim.AdamW(old.parameters(), lr=1e-3, eps=1e-30)
    for step in range(4):
        gradients(old, batch(step))
        adam.step()
    state = {name: dict(adam.state[parameter]) for name, parameter in old.named_parameters()}
    new = scale_bilaterally(old, 2, 0, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    grown = grow_optimizer_state(state, old.config, new.config, "grown")
    updates = {}
    for key, model, moments in (("old", old, state), ("new", new, grown), ("fresh", copy.deepcopy(new), {})):
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-30, weight_decay=0.0)
        for name, parameter in model.named_parameters():
            adam.state[parameter] = {k: v.clone() for k, v in moments.get(name, {}).items()}
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        gradients(model, batch(9))
        adam.step()
        updates[key] = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    misses = 0.0
    for name, update in updates["old"].items():
        rows, columns = maps.axes(name)
        expected = update if columns is None else columns.written(update)
        expected = expected if rows is None else rows.written(expected, dim=-1 if columns is None else -2)
        torch.testing.assert_close(updates["new"][name], expected, rtol=1e-6, atol=1e-12)
        misses = max(misses, (updates["fresh"][name] - expected).abs().max().item())
    assert misses > 1e-4, "a fresh optimizer would have moved elsewhere"


@pytest.mark.parametrize("architecture", GEOMETRIES)
def test_muons_momentum_grows_like_a_gradient(architecture):
    """Its orthogonalised update of a grown momentum is the old one, tiled."""
    old = small_model("moe", architecture)
    optimizers = build_optimizers(old, weight_decay=0.0, tokens=8 * old.config.d_model)
    gradients(old, batch(0))
    for optimizer in optimizers:
        optimizer.step()
    new = scale_bilaterally(old, 2, 0, 0.0)
    maps = GrowthMaps.between(old.config, new.config)
    grown = grow_optimizer_state(read_moments(old, optimizers), old.config, new.config, "grown")
    muon = build_optimizers(new, weight_decay=0.0, tokens=8 * old.config.d_model)
    write_moments(new, muon, grown)
    set_learning_rate(optimizers + muon, 0.01)
    for model, its in ((old, optimizers), (new, muon)):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        gradients(model, batch(1))
        its[0].step()
        model.updates = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    for name in filter(is_matrix, old.updates):
        rows, columns = maps.axes(name)
        tiled = rows.written(columns.written(old.updates[name]), dim=-2)
        actual = new.updates[name]
        assert torch.nn.functional.cosine_similarity(actual.flatten(), tiled.flatten(), dim=0) > 0.9999, name


def test_after_growth_every_matrix_has_its_turn_once_in_a_period():
    """Also new blocks, which count their steps from nought, under a period that growth made longer."""
    old = small_model("moe")
    optimizers = build_optimizers(old, weight_decay=0.0, tokens=128)
    for step in range(3):
        gradients(old, batch(step))
        optimizers[0].step()
    new = scale_bilaterally(old, 2, 2, 1.0)
    few = new.config.d_model  # tokens of a step: too few for one step to be enough
    of_matrices, of_experts = muon_periods(new.config, few)
    assert 1 < of_matrices < of_experts != muon_periods(old.config, 128)[1]
    muon, adamw = build_optimizers(new, weight_decay=0.0, tokens=few)
    grown = grow_optimizer_state(read_moments(old, optimizers), old.config, new.config, "grown")
    write_moments(new, [muon, adamw], grown)
    set_learning_rate([muon, adamw], 0.01)
    turns = {name: 0 for name, parameter in new.named_parameters() if is_matrix(name)}
    for step in range(of_matrices * of_experts):
        before = {name: parameter.detach().clone() for name, parameter in new.named_parameters() if name in turns}
        for parameter in new.parameters():
            parameter.grad = torch.randn(parameter.shape, dtype=torch.float64)  # an identity block's first are zero
        muon.step()
        for name, start in before.items():
            turns[name] = turns[name] + (dict(new.named_parameters())[name] != start).flatten(-2).any(-1).int()
    for name, count in turns.items():
        assert (count == (of_matrices if "mlp" in name else of_experts)).all(), name
    assert len({int(grown.get(name, {}).get("step", 0)) for name in turns}) == 2, "old and new blocks count apart"


def test_asymmetric_growth_keeps_the_first_copies_alone():
    old = small_model("dense")
    state = {name: {"exp_avg": torch.ones_like(p), "step": torch.tensor(7.0)} for name, p in old.named_parameters()}
    new = old.config.grown(2, 2)
    grown = grow_optimizer_state(state, old.config, new, "asymmetric")
    up = grown["blocks.0.mlp.up.weight"]["exp_avg"]
    assert up[:64, :16].all() and not up[64:].any() and not up[:, 16:].any()
    assert grown["blocks.0.mlp.up.weight"]["step"] == 7
    assert not any(name.startswith("blocks.1.") for name in grown), "identity blocks begin afresh"
    assert grow_optimizer_state(state, old.config, new, "fresh") == {}


@pytest.mark.parametrize("architecture", GEOMETRIES)
def test_experts_share_out_the_dense_gradient(architecture):
    """With equal experts and gates that sum to one, the experts' gradients sum to the dense one; so do the moments."""
    dense = small_model("dense", architecture)
    moe = upcycle_to_moe(dense, n_experts=8, top_k=2)
    g_dense, g_moe = gradients(dense, batch(0)), gradients(moe, batch(0))
    state = {name: {"exp_avg": g.clone(), "exp_avg_sq": g.square()} for name, g in g_dense.items()}
    grown = grow_optimizer_state(state, dense.config, moe.config, "grown")
    for name, g in g_dense.items():
        if ".mlp." in name:
            torch.testing.assert_close(g_moe[name].sum(0), g, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(grown[name]["exp_avg"].sum(0), g)
        else:
            torch.testing.assert_close(g_moe[name], g, rtol=1e-9, atol=1e-12)
            assert torch.equal(grown[name]["exp_avg"], g)
    assert not any("router" in name for name in grown)


def test_second_moments_of_experts_are_of_the_size_that_is_then_measured():
    """Over many batches; unscaled they would be an order of magnitude too large."""
    dense = small_model("dense")
    moe = upcycle_to_moe(dense, n_experts=8, top_k=2, router_std=0.5)
    square, total, measured = {}, {}, {}
    n = 60
    for step in range(n):
        for name, g in gradients(dense, batch(step)).items():
            total[name] = total.get(name, 0) + g / n
            square[name] = square.get(name, 0) + g.square() / n
        for name, g in gradients(moe, batch(step)).items():
            measured[name] = measured.get(name, 0) + g.square() / n
    state = {name: {"exp_avg": total[name], "exp_avg_sq": square[name]} for name in square}
    grown = grow_optimizer_state(state, dense.config, moe.config, "grown")
    for name in ("blocks.0.mlp.up.weight", "blocks.1.mlp.down.weight", "blocks.1.mlp.up.bias"):
        ratio = (grown[name]["exp_avg_sq"].mean() / measured[name].mean()).item()
        assert 0.5 < ratio < 2, (name, ratio)
        assert square[name].mean() / measured[name].mean() > 8
