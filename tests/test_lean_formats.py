"""How lean memory keeps numbers: weights in three bytes, in memory and on the disk, and momenta in one."""

import copy
import dataclasses

import pytest
import torch

from config import PRESETS, ModelConfig, UserError
from models import Transformer, exact_arithmetic, files, lean, load_model, next_token_loss, save_model
from models.files import load_model_and_checksum
from models.lean import compressed, expanded, joined, keep_weights, layers_in_parts, split
from models.shards import whole_parameter
from test_growth_checks import lively_dense_model, lively_moe_model
from training.heldout import heldout_loss
from training.optimizer import read_moments, write_moments
from training.step import prepare_training, train_step
from transfer.optimizer_growth import grow_optimizer_state, narrowed, widened
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import detailed_growth_check

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=3, n_heads=4, context_length=16)
LLAMA = dataclasses.replace(SMALL, architecture="llama")
CONFIG = PRESETS["tiny"]
KINDS = {
    "dense": lambda: lively_dense_model(SMALL),
    "moe": lambda: lively_moe_model(SMALL),
    "llama": lambda: lively_moe_model(LLAMA),
}


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randint(101, (8, 17), generator=torch.Generator().manual_seed(seed))


def kept_small(model: Transformer) -> Transformer:
    model = copy.deepcopy(model)
    keep_weights(model, in_two_parts=True)
    return model


@pytest.fixture(scope="module")
def numbers() -> torch.Tensor:
    """fp32 of every sign and exponent, with mantissas all over: 4.3 million bit patterns, and the edges of each byte."""
    spread = torch.arange(-(2**31), 2**31, 997)
    edges = torch.arange(-(2**15), 2**15)[:, None] * 2**16 + torch.tensor(
        [0, 0x7F, 0x80, 0x7FFF, 0x8000, 0xFF7F, 0xFFFF]
    )
    return torch.cat((spread, edges.flatten())).to(torch.int32).view(torch.float32)


def test_three_bytes_are_within_two_to_the_minus_16th_and_their_own_split(numbers):
    high, low = split(numbers)
    assert high.dtype == torch.bfloat16 and low.dtype == torch.int8
    again = joined(high, low)
    is_normal = (numbers.abs() >= torch.finfo(torch.float32).tiny) & (numbers.abs() < 3.38e38)
    error = (again.double() - numbers.double()).abs() / numbers.double().abs()
    assert error[is_normal].max() <= 2**-16, "half of the last of 16 significant bits"
    assert error[is_normal].max() > 2**-16.1, "and no less: the bound is met"
    is_number = ~numbers.isnan()
    for part, of_joined in zip((high, low), split(again)):
        assert torch.equal(part[is_number], of_joined[is_number])
    of_high = (high.double() - again.double()).abs() / again.double().abs()
    assert of_high[is_normal].max() <= 2**-8, "half of the last of 8"


def test_what_is_no_number_stays_none_and_what_is_one_stays_one(numbers):
    high, low = split(numbers)
    assert torch.equal(high.isnan(), numbers.isnan()) and torch.equal(joined(high, low).isnan(), numbers.isnan())
    infinite = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    assert torch.equal(joined(*split(infinite)).view(torch.int32), infinite.view(torch.int32))
    is_small = numbers.abs() < 3.38e38
    assert joined(high, low)[is_small].isfinite().all() and high[is_small].isfinite().all()


def test_a_momentum_in_one_byte_is_its_own_again_and_keeps_small_entries():
    values = torch.randn(5, 64, 300, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 0
    values[1, 1, 7] = 300  # one large entry must not swallow its row
    codes, scale = compressed(values)
    assert codes.dtype == torch.int8 and scale.shape == (5, 64, 1) and scale.dtype == torch.float32
    again = expanded(codes, scale)
    for part, expected in zip(compressed(again), (codes, scale)):
        assert torch.equal(part, expected)
    # Half a step in the root is at most √(|x| · largest) / 127 + largest / (4 · 127²); a dozen roundings of fp32 besides.
    largest = values.abs().amax(-1, keepdim=True)
    bound = (values.abs() * largest).sqrt() / 127 + largest / (4 * 127**2)
    assert ((again - values).abs() <= bound + 12 * 2**-24 * largest).all()
    row = values[1, 1].clone()
    row[7] = 0
    assert (again[1, 1] - values[1, 1])[row != 0].norm() < 0.12 * row.norm()
    linear = (values / largest * 127).round() * largest / 127  # the control
    assert (linear[1, 1] - values[1, 1])[row != 0].norm() > 0.6 * row.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_exact_evaluation_reads_both_parts_and_training_one(kind, monkeypatch):
    """The control reads the bf16 part alone, and is found out."""
    model = KINDS[kind]()
    small = kept_small(model)
    exact, batches = heldout_loss(model, [batch()]), [batch()]
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept in zip(layers_in_parts(rounded), layers_in_parts(small)):
            layer.weight.copy_(kept.weight)
    assert heldout_loss(small, batches) == pytest.approx(exact, abs=2e-5)
    joined_again = kept_small(model)
    keep_weights(joined_again, in_two_parts=False)
    assert heldout_loss(small, batches) == heldout_loss(joined_again, batches)
    with torch.no_grad():
        in_training = next_token_loss(small, batch())[0].item()
        assert in_training == next_token_loss(rounded, batch())[0].item()
    monkeypatch.setattr(lean.InTwoParts, "low", None)
    control = heldout_loss(small, batches)
    assert control == in_training and abs(control - exact) > 4e-5


def test_exact_arithmetic_is_differentiable_and_leaves_no_trace():
    model = lively_moe_model(SMALL)
    small = kept_small(model)
    keep_weights(whole := copy.deepcopy(small), in_two_parts=False)
    for each in (small, whole):
        with exact_arithmetic(each):
            next_token_loss(each, batch())[0].backward()
    assert not small.reads_low
    for (name, parameter), exact in zip(small.named_parameters(), whole.parameters()):
        assert parameter.grad.dtype == parameter.dtype, name
        assert (parameter.grad.float() - exact.grad).norm() <= 2**-8 * exact.grad.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_what_is_kept_and_no_more_bytes(kind, tmp_path):
    model = KINDS[kind]()
    small = kept_small(model)
    sizes = {}
    for name, each in (("whole", model), ("small", small)):
        save_model(each, tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    n_matrices = sum(layer.weight.numel() for layer in layers_in_parts(model))
    # Each of the buffers more than before has a name and a header in the file.
    assert sizes["whole"] - sizes["small"] == pytest.approx(n_matrices, abs=600 * len(list(layers_in_parts(model))))
    again = load_model_and_checksum(tmp_path / "small")[0]
    for (name, tensor), kept in zip(again.state_dict().items(), small.state_dict().values(), strict=True):
        assert tensor.dtype == kept.dtype and torch.equal(tensor, kept), name
    loaded = load_model(tmp_path / "small")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32} and not list(loaded.buffers())
    assert heldout_loss(loaded, [batch()]) == heldout_loss(small, [batch()])
    assert all(torch.equal(p, whole_parameter(small, name)) for name, p in loaded.named_parameters())


def test_files_of_before_are_read_and_others_refused(tmp_path, monkeypatch):
    model = lively_moe_model(SMALL)
    for number, is_read in ((1, False), (2, True), (4, False)):
        with monkeypatch.context() as patch:
            patch.setattr(files, "FORMAT", f"bilateral-growth-model/{number}")
            save_model(model, tmp_path / "model")
        if is_read:
            assert heldout_loss(load_model(tmp_path / "model"), [batch()]) == heldout_loss(model, [batch()])
        else:
            with pytest.raises(UserError, match="not a model of ours"):
                load_model(tmp_path / "model")


def test_parts_that_do_not_fit_the_model_are_refused(tmp_path):
    small = kept_small(lively_moe_model(SMALL))
    small.blocks[0].mlp.up.weight_low = small.blocks[0].mlp.up.weight_low[1:]
    save_model(small, tmp_path / "model")
    with pytest.raises(UserError, match="do not fit the geometry"):
        load_model(tmp_path / "model")


def test_growth_reads_both_parts_and_stays_exact():
    """From a kept model as from the whole one that it is; both boundaries."""
    dense = kept_small(lively_dense_model(SMALL))
    keep_weights(whole_dense := copy.deepcopy(dense), in_two_parts=False)
    moes = [upcycle_to_moe(model, n_experts=4) for model in (dense, whole_dense)]
    assert all(torch.equal(a, b) for a, b in zip(*(moe.parameters() for moe in moes), strict=True))
    assert heldout_loss(moes[0], [batch()]) == pytest.approx(heldout_loss(dense, [batch()]), abs=1e-6)

    moe = kept_small(lively_moe_model(SMALL))
    grown = scale_bilaterally(moe, 2, 1)
    assert {parameter.dtype for parameter in grown.parameters()} == {torch.float32}
    assert all(detailed_growth_check(moe, grown).values())
    assert heldout_loss(grown, [batch()]) == pytest.approx(heldout_loss(moe, [batch()]), abs=1e-6)
    control = copy.deepcopy(moe)
    for layer in layers_in_parts(control):
        layer.weight_low.zero_()
    assert not all(detailed_growth_check(control, grown).values()), "grown from more than the bf16 part"


@pytest.mark.parametrize("way", ["grown", "asymmetric"])
def test_momenta_in_one_byte_grow_as_wide_ones(way):
    model = lively_moe_model(SMALL)
    optimizers = prepare_training(model, CONFIG, None, is_lean=True)
    train_step(model, optimizers, batch(), 0.01, CONFIG)
    muon = optimizers[0]
    state = {name: dict(muon.state[p]) for name, p in model.named_parameters() if p in muon.state}
    new = SMALL.upcycled(8, 2).grown(2, 1)
    grown = grow_optimizer_state(state, model.config, new, way)
    wide = grow_optimizer_state({name: widened(m) for name, m in state.items()}, model.config, new, way)
    assert grown.keys() == wide.keys() and grown
    for name, moments in grown.items():
        for key, expected in narrowed(wide[name]).items():
            assert torch.equal(moments[key], expected), (name, key)
        assert moments["momentum_buffer"].dtype == torch.int8


def test_a_run_in_parts_is_the_run_in_one_bit_for_bit():
    """Five steps and, from copies of what is saved, five more; the control loses the low parts."""

    def go(model, optimizers, steps):
        for step in steps:
            train_step(model, optimizers, batch(step), 0.01, CONFIG)
        return model.state_dict()

    model = lively_moe_model(SMALL)
    optimizers = prepare_training(model, CONFIG, None, is_lean=True)
    go(model, optimizers, range(5))
    saved = copy.deepcopy((model.state_dict(), read_moments(model, optimizers)))
    expected = go(model, optimizers, range(5, 10))
    for loses_low in (False, True):
        with torch.device("meta"):
            other = Transformer(model.config)
        weights, moments = copy.deepcopy(saved)
        lean.take_weights(other, weights)
        other.requires_grad_(True)
        if loses_low:
            for layer in layers_in_parts(other):
                layer.weight_low.zero_()
        optimizers = prepare_training(other, CONFIG, None, is_lean=True)
        write_moments(other, optimizers, moments)
        ends = go(other, optimizers, range(5, 10))
        assert all(torch.equal(ends[name], value) for name, value in expected.items()) != loses_low
