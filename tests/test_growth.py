"""Upcycling and bilateral growth keep the function: dtypes, factors, depths, noise, twice in a row."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config import ModelConfig, UserError
from models import Transformer, build_dense_model, next_token_loss
from test_growth_checks import lively_dense_model, lively_moe_model
from transfer.growth_maps import MEAN, AxisMap, GrowthMaps, block_origins
from transfer.near_ties import following
from transfer.probe import probe_tokens, trace
from transfer.rounding import precision_of, rms
from transfer.simple_growth import hyperclone_weight, scale_bilaterally
from transfer.upcycling import upcycle_to_moe

GEOMETRY = ModelConfig(vocab_size=97, d_model=16, n_layers=3, n_heads=4, context_length=24)
# Eight heads on four key-value heads.
LLAMA = ModelConfig(
    vocab_size=97, d_model=32, n_layers=3, n_heads=8, context_length=24, architecture="llama", queries_per_kv=2,
    hidden_ratio=2.75, norm_eps=1e-4,
)  # fmt: skip
GEOMETRIES = {"neox": GEOMETRY, "llama": LLAMA}
TOKENS = torch.randint(97, (8, 25), generator=torch.Generator().manual_seed(0))
KINDS = {"dense": lively_dense_model, "moe": lively_moe_model}


# What is promised of exact growth: largest |Δlogit|, and |Δloss| in nats. In bf16 rounding moves logits by hundredths.
PROMISED = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-6), torch.bfloat16: (math.inf, 1e-3)}
BATTERY = [
    *itertools.product((1.5, 2, 3), (0, 1, 4, 5), (0, 1e-5, 0.5, 1.0)),
    # Without copies there is nothing to add noise to.
    *itertools.product((1,), (0, 1, 4, 5), (0, 1.0)),
    *itertools.product((1.75, 4), (1,), (0, 1.0)),
]


class Measured(NamedTuple):
    """What a model makes of `TOKENS`: fp64 logits, the loss in nats, and the logits of every router."""

    config: ModelConfig
    logits: Tensor
    loss: float
    router_logits: list[Tensor]


class Differences(NamedTuple):
    """What growth changed: |Δlogit| and |Δloss| at most; how far rounding may move logits; what is wrong with experts."""

    logits: float
    loss: float
    rounding: float
    choices: list[str]


@torch.no_grad()
def measured(model: Transformer) -> Measured:
    seen = trace(model, TOKENS)
    # In fp64, so that the loss adds no rounding of its own.
    logits = seen.logits.double().flatten(0, 1)
    return Measured(model.config, logits, F.cross_entropy(logits, TOKENS[:, 1:].flatten()).item(), seen.router_logits)


def differences(old: Measured, new_model: Transformer, origins: list[int | None]) -> Differences:
    """Of a new model that is led along the old one's choice where rounding turns a near-tie."""
    precision = precision_of(new_model)
    with following(new_model, old.router_logits, origins, precision.tolerance) as choices:
        new = measured(new_model)
    return Differences(
        (old.logits - new.logits).abs().max().item(),
        abs(old.loss - new.loss),
        rounding_bound(old, new, new_model.embedding.weight.dtype),
        choices.faults(precision.turned_share),
    )


def rounding_bound(old: Measured, new: Measured, dtype: torch.dtype) -> float:
    """How far rounding alone may move a logit between two models that are equal in exact arithmetic.

    A sum of n terms of random sign has partial sums of √1 … √n times a term's size. Each is rounded by at most the
    share u of itself, so the sum is off by at most u √(n / 2) of its own size, root mean square, in whatever order and
    by whatever kernel it is added up (after Higham & Mary 2019, whose λ is below). Errors of one product after another
    on the way through the network are independent, and add up as squares. Of N independent normal errors the largest
    is about √(2 ln N).
    """
    n_added = 0
    for config in (old.config, new.config):
        qkv_out_up, scores, values = 3 * config.d_model, config.head_dim, TOKENS.shape[1]
        n_added += config.n_layers * (qkv_out_up + scores + values + config.d_hidden) + config.d_model
    largest = math.sqrt(2 * math.log(old.logits.numel()))
    return largest * torch.finfo(dtype).eps / 2 * math.sqrt(n_added / 2) * rms(old.logits).item()


def holds(found: Differences, dtype: torch.dtype) -> bool:
    logits, loss = PROMISED[dtype]
    return found.logits <= min(found.rounding, logits) and found.loss <= loss and not found.choices


def small_model(kind: str, dtype: torch.dtype) -> Transformer:
    return KINDS[kind](GEOMETRY).to(dtype)


@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_growth_keeps_the_function(kind, dtype):
    old = small_model(kind, dtype)
    before = measured(old)
    for factor, extra, noise in BATTERY:
        new = scale_bilaterally(old, factor, extra, noise)
        assert new.config.d_model == factor * 16 and new.config.n_layers == 3 + extra
        found = differences(before, new, block_origins(3, extra))
        assert holds(found, dtype), (factor, extra, noise, found)


@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", GEOMETRIES)
def test_growth_keeps_the_function_twice_in_a_row(architecture, kind, dtype):
    old = KINDS[kind](GEOMETRIES[architecture]).to(dtype)
    before = measured(old)
    first_origins, second_origins = block_origins(3, 1), block_origins(4, 5)
    origins = [None if block is None else first_origins[block] for block in second_origins]
    for first, second in ((2, 2), (1.5, 2), (1.5, 1.5), (3, 1.25)):
        new = scale_bilaterally(scale_bilaterally(old, first, 1, 1.0), second, 5, 1.0)
        found = differences(before, new, origins)
        assert holds(found, dtype), (first, second, found)


@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", GEOMETRIES)
def test_growth_without_clones_keeps_the_function(architecture, kind, dtype):
    """Once and twice, and no two of the new features and hidden units are read alike."""
    old = KINDS[kind](GEOMETRIES[architecture]).to(dtype)
    before, origins = measured(old), block_origins(3, 1)
    for factor in (1.5, 2):
        new = scale_bilaterally(old, factor, 1, is_cloned=False)
        again = scale_bilaterally(new, 2, 0, is_cloned=False)
        for model in (new, again):
            found = differences(before, model, origins)
            assert holds(found, dtype), (factor, found)
        maps = GrowthMaps.between(old.config, new.config, is_cloned=False)
        for name, weight in new.blocks[0].named_parameters():
            columns = maps.axes(f"blocks.0.{name}")[1]
            if columns is not None and columns is not maps.head_features and "router" not in name:
                read_OI = weight.double().flatten(0, -2)[:, -columns.n_old // 2 :]
                assert torch.linalg.matrix_rank(read_OI) == min(read_OI.shape), (factor, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_promised_leaves_room_for_rounding_on_any_machine(dtype):
    before = measured(small_model("moe", dtype))
    largest = before._replace(config=before.config.grown(4, 5))
    assert rounding_bound(before, largest, dtype) <= PROMISED[dtype][0]


def test_a_fault_of_a_few_roundings_is_caught():
    old = small_model("moe", torch.float64)
    before, new = measured(old), scale_bilaterally(old, 2, 1)
    assert holds(differences(before, new, block_origins(3, 1)), torch.float64)
    with torch.no_grad():
        new.blocks[1].mlp.down.weight *= 1 + 1e-12
    assert not holds(differences(before, new, block_origins(3, 1)), torch.float64)


def test_growth_leaves_the_old_model_untouched_and_shares_no_memory():
    old = small_model("moe", torch.float32)
    before = {name: value.clone() for name, value in old.state_dict().items()}
    for new in (scale_bilaterally(old, 1, 0), scale_bilaterally(old, 2, 1)):
        for parameter in new.parameters():
            parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())


def test_upcycling_copies_experts_and_keeps_the_function():
    dense = small_model("dense", torch.float32)
    moe = upcycle_to_moe(dense, n_experts=5, top_k=3)
    assert holds(differences(measured(dense), moe, origins=[]), torch.float32)
    assert all(torch.equal(expert, dense.blocks[1].mlp.up.weight) for expert in moe.blocks[1].mlp.up.weight)
    std = torch.cat([block.mlp.router.weight.flatten() for block in moe.blocks]).std().item()
    assert std == pytest.approx(0.02, rel=0.2)


def test_new_routers_are_no_copies_of_anything_drawn_from_the_same_seed():
    dense = build_dense_model(GEOMETRY, seed=0)
    routers = [block.mlp.router.weight for block in upcycle_to_moe(dense, seed=0).blocks]
    drawn = torch.cat([p.flatten() for p in dense.parameters()])
    for router in routers:
        # Among so many of fp32's values one or two coincide by chance once in a hundred times.
        assert torch.isin(router.flatten(), drawn).sum() <= 2
    assert not torch.equal(routers[0], routers[1])


def test_growth_draws_nothing_that_upcycling_or_the_growth_before_drew_from_the_same_seed():
    """A run has one seed for all of its boundaries: what is drawn at one must be independent of the others."""
    moe = upcycle_to_moe(build_dense_model(GEOMETRY, seed=0), seed=0)
    deeper = scale_bilaterally(moe, 1, 3, seed=0)
    deepest = scale_bilaterally(deeper, 1, 3, seed=0)
    drawn = [block.mlp.router.weight.flatten() for block in moe.blocks]
    for model, n_old in ((deeper, 3), (deepest, 6)):
        new = [i for i, origin in enumerate(block_origins(n_old, 3)) if origin is None]
        drawn += [model.blocks[i].mlp.router.weight.flatten() for i in new]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert len(drawn) == 9 and correlations.abs().max() < 0.5

    router = moe.blocks[0].mlp.router.weight
    quiet, noisy = (scale_bilaterally(moe, 2, 0, noise_std=std, seed=0) for std in (0.0, 1.0))
    noise = noisy.blocks[0].mlp.router.weight - quiet.blocks[0].mlp.router.weight
    # Of one stream, the noise of two clones would be the difference of two rows of the router.
    first_clones, differences_of_rows = noise[:4, :16].flatten(), (router[::2] - router[1::2]).flatten()
    assert torch.corrcoef(torch.stack([first_clones, differences_of_rows]))[0, 1].abs() < 0.5


def test_a_zero_router_sends_all_tokens_to_the_same_experts():
    """Why router_std is not zero."""
    dense = small_model("dense", torch.float32)
    shares = {}
    for std in (0.0, 0.02):
        _, routings = upcycle_to_moe(dense, router_std=std).hidden(probe_tokens(dense)[:, :-1])
        shares[std] = (routings[0].slots_per_expert_E > 0).sum().item()
    assert shares[0.0] == 2 and shares[0.02] > 4


def test_upcycling_refuses_experts():
    with pytest.raises(UserError, match="starts from a dense model"):
        upcycle_to_moe(small_model("moe", torch.float32))


def test_factors_without_whole_heads_are_refused_with_those_that_work():
    with pytest.raises(UserError, match="4 heads into 5.2, .* 1.25, 1.5, 1.75, 2"):
        scale_bilaterally(small_model("dense", torch.float32), 1.3, 0)
    for factor, extra, text in (
        (0.5, 0, "never shrinks"),
        (float("nan"), 0, "never shrinks"),
        (2, -1, "never removes"),
    ):
        with pytest.raises(UserError, match=text):
            scale_bilaterally(small_model("dense", torch.float32), factor, extra)


def test_router_weight_is_tiled_and_divided():
    weight = torch.randn(8, 6)
    assert torch.equal(hyperclone_weight(weight, columns=AxisMap.tiled(6, 12)), weight.repeat(1, 2) / 2)


@pytest.mark.parametrize("n_new", [12, 15, 18])
def test_cancelling_noise_sums_to_zero_over_copies_and_has_its_size(n_new):
    axis = AxisMap.tiled(6, n_new)
    noise = torch.zeros(4000, n_new)
    axis.add_cancelling_noise(noise, 0.3, torch.Generator().manual_seed(0))
    for unit in range(6):
        copies = noise[:, axis.source == unit]
        assert copies.sum(1).abs().max() < 1e-5
        if copies.shape[1] > 1:
            assert copies.std().item() == pytest.approx(0.3, rel=0.05)
        else:
            assert not copies.any()


def test_noise_is_relative_to_the_standard_deviation_of_each_weight():
    weight = 7 * torch.randn(300, 64)
    axis = AxisMap.tiled(64, 128)
    plain = hyperclone_weight(weight, columns=axis)
    noisy = hyperclone_weight(weight, columns=axis, noise_std=0.5, generator=torch.Generator().manual_seed(0))
    assert ((noisy - plain).std() / plain.std()).item() == pytest.approx(0.5, rel=0.05)


def test_uneven_maps():
    heads = AxisMap.tiled(4, 6)
    assert heads.source.tolist() == [0, 1, 2, 3, 0, 1] and heads.copies.tolist() == [2, 2, 1, 1, 2, 2]
    assert [pair.tolist() for pair in heads.clone_pairs()] == [[0, 1], [4, 5]]
    residual = AxisMap.tiled_with_filling(4, 6, MEAN)
    assert residual.source.tolist() == [0, 1, 2, 3, MEAN, MEAN]
    x = torch.tensor([1.0, 2, 3, 6])
    assert residual.written(x).tolist() == [1, 2, 3, 6, 3, 3]
    assert residual.normalised(x).tolist() == [1, 2, 3, 6, 0, 0]
    assert heads.repeated_inside(2).source.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("n_old, n_extra", [(7, 4), (7, 0), (1, 3), (2, 9), (12, 1), (7, 7)])
def test_identity_blocks_are_spread_evenly(n_old, n_extra):
    origins = block_origins(n_old, n_extra)
    assert [o for o in origins if o is not None] == list(range(n_old)) and origins.count(None) == n_extra
    assert origins[0] == 0
    runs = [0] * n_old
    for position, origin in enumerate(origins):
        runs[sum(o is not None for o in origins[:position]) - 1] += origin is None
    assert max(runs) - min(runs) <= 1


def test_identity_blocks_learn_within_two_steps():
    """Their projections learn at once, and what stands before those from the second step on."""
    new = scale_bilaterally(small_model("moe", torch.float32), 2, 2)
    identity = [i for i, o in enumerate(block_origins(3, 2)) if o is None]
    tokens = probe_tokens(new).repeat(8, 1)
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        next_token_loss(new, tokens)[0].backward()
        optimizer.step()
        for i in identity:
            for name, parameter in new.blocks[i].named_parameters():
                learns = step == 1 or name.startswith(("attention.out", "mlp.down"))
                assert bool(parameter.grad.any()) == learns, (step, i, name)


def test_the_same_seed_grows_the_same_model():
    old = small_model("moe", torch.float32)
    first, second, other = (scale_bilaterally(old, 2, 1, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.up.weight"], other["blocks.0.mlp.up.weight"])


def test_maps_refuse_a_model_that_is_no_growth():
    with pytest.raises(UserError, match="n_experts"):
        GrowthMaps.between(GEOMETRY, GEOMETRY.upcycled(4, 2))
    with pytest.raises(UserError, match="smaller"):
        GrowthMaps.between(GEOMETRY.grown(2, 0), GEOMETRY)
