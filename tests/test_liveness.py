"""The liveness report on models that live, and on models of which some part is known to be dead."""

import dataclasses
import json
import math
from statistics import fmean

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import PRESETS, ModelConfig, UserError
from models import Transformer, count_parameters, next_token_loss
from models.moe import Routing
from test_growth_checks import lively_dense_model, lively_moe_model
from training.step import prepare_training, train_step
from transfer.gradient_coverage import BITS, GradientCoverage, n_set, packed, unpacked
from transfer.growth_maps import GrowthMaps
from transfer.liveness import (
    CloneCosine,
    LivenessReport,
    effective_rank_share,
    expert_shares,
    liveness_report,
    normalised_entropy,
)
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe

GEOMETRY = ModelConfig(vocab_size=211, d_model=32, n_layers=3, n_heads=4, context_length=24)
TOKENS = torch.randint(211, (16, 25), generator=torch.Generator().manual_seed(0))


def train(model: Transformer, steps: int, coverage: GradientCoverage | None = None, optimizer=torch.optim.Adam):
    optimizer = optimizer(model.parameters(), lr=1e-2)
    for _ in range(steps):
        next_token_loss(model, TOKENS)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if coverage:
            coverage.steps += 1


def cosines(model: Transformer, old: Transformer) -> dict[str, CloneCosine]:
    return {c.kind: c for c in liveness_report(model, old.config, TOKENS).clone_cosines}


@pytest.mark.parametrize(
    "kind, factor, n_pairs", [("dense", 2, 32), ("moe", 2, 32), ("moe", 1.5, 15), ("dense", 3, 64)]
)
def test_cosines_of_clones_at_growth_follow_from_the_noise(kind, factor, n_pairs):
    """1 / (1 + f n²), as `width_cosines` derives it."""
    old = {"dense": lively_dense_model, "moe": lively_moe_model}[kind](GEOMETRY)
    noisy_columns = 1 if factor != 1.5 else 0.5
    for noise in (0.0, 0.5, 1.0):
        found = cosines(scale_bilaterally(old, factor, 1, noise), old)
        # At 1.5, pairs of residual features are mean-filled: their rows are 1/√32 as long, the noise is on
        # 2/3 of the columns, and its size is relative to all rows, of which only 2/3 are full.
        residual = 1 if factor != 1.5 else 32 * 4 / 9
        for name, f in (("heads", noisy_columns), ("hidden units", noisy_columns), ("residual features", residual)):
            expected = 1 / (1 + f * noise**2)
            tolerance = 0.05 if noise else 1e-6
            assert found[name].average == pytest.approx(expected, abs=tolerance), (name, noise)
            assert expected - tolerance < found[name].largest < expected + 2 * tolerance
        n_writers = 1 + (8 if kind == "moe" else 1)
        assert found["residual features"].n_pairs == n_pairs * n_writers * old.config.n_layers


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("factor", [1.5, 2])
def test_clones_without_noise_stay_together(optimizer, factor):
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, factor, 0, noise_std=0.0)
    before = new.blocks[0].mlp.up.weight.detach().clone()
    train(new, 4, optimizer=optimizer)
    assert not torch.equal(new.blocks[0].mlp.up.weight, before)
    for clone in cosines(new, old).values():
        assert clone.average == pytest.approx(1, abs=1e-6) and clone.largest == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", [1.5, 2])
def test_clones_with_noise_part_further_with_every_step(factor):
    old = lively_moe_model(GEOMETRY)
    courses = {}  # by kind and seed of growth; one draw alone may part half as far as another
    for seed in range(3):
        new = scale_bilaterally(old, factor, 0, noise_std=1.0, seed=seed)
        for step in range(4):
            if step:
                train(new, 2)
            for kind, clone in cosines(new, old).items():
                courses.setdefault(kind, {}).setdefault(seed, []).append(clone.average)
    # The mean-filled residual features of 1.5 have nothing left to lose.
    for kind in ("heads", "hidden units", *(["residual features"] if factor == 2 else [])):
        of_seeds = list(courses[kind].values())
        assert all(course == sorted(course, reverse=True) for course in of_seeds), (kind, of_seeds)
        assert fmean(course[0] - course[-1] for course in of_seeds) > 0.05, (kind, of_seeds)


def test_one_locked_block_shows_as_the_largest():
    old = lively_dense_model(GEOMETRY)
    noisy, plain = (scale_bilaterally(old, 2, 0, noise) for noise in (1.0, 0.0))
    noisy.blocks[1].load_state_dict(plain.blocks[1].state_dict())
    for clone in cosines(noisy, old).values():
        assert clone.largest_block == 1 and clone.largest == pytest.approx(1, abs=1e-6)
        assert clone.average < 0.75


def test_experts_are_equal_at_upcycling_and_part():
    dense = lively_dense_model(GEOMETRY)
    moe = upcycle_to_moe(dense)
    for clone in cosines(moe, dense).values():
        assert clone.average == pytest.approx(1, abs=1e-6) and clone.n_pairs == 28 * 3
    train(moe, 3)
    found = cosines(moe, dense)
    assert set(found) == {"experts' up", "experts' down"}
    assert all(0.5 < clone.average < 0.99 for clone in found.values())

    for weight in (moe.blocks[2].mlp.up.weight, moe.blocks[2].mlp.down.weight):
        weight.data[1:] = 2 * weight.data[:1]
    for clone in cosines(moe, dense).values():
        assert clone.largest_block == 2 and clone.largest == pytest.approx(1, abs=1e-6) and clone.average < 0.99


def test_depth_alone_makes_no_clones():
    old = lively_moe_model(GEOMETRY)
    report = liveness_report(scale_bilaterally(old, 1, 2), old.config, TOKENS)
    assert report.clone_cosines is None and report.identity_effective_rank is not None
    report = liveness_report(scale_bilaterally(old, 1, 0), old.config, TOKENS)
    assert report.clone_cosines is None and report.identity_effective_rank is None


@pytest.mark.parametrize("factor, extra", [(2, 2), (1.5, 1), (1, 2), (1, 0)])
def test_new_parameters_are_those_that_the_old_model_did_not_have(factor, extra):
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, factor, extra)
    coverage = GradientCoverage(new, old.config)
    assert coverage.new_parameters == count_parameters(new).total - count_parameters(old).total
    assert coverage.never_touched_share() == (1 if coverage.new_parameters else 0)
    maps = GrowthMaps.between(old.config, new.config)
    for axis in (maps.residual, maps.hidden, maps.qkv_rows, maps.head_features):
        assert axis.source[: axis.n_old].tolist() == list(range(axis.n_old)), "first copies come first"


def test_coverage_tells_old_from_new():
    """A gradient on what the old model had leaves the share at 1; one on all the rest takes it to 0."""
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    coverage = GradientCoverage(new, old.config)
    origins, old_parameters = GrowthMaps.between(old.config, new.config).block_origins, dict(old.named_parameters())
    corners = []
    for name, parameter in new.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        if block is None or origins[block] is not None:
            old_name = name if block is None else name.replace(f"blocks.{block}.", f"blocks.{origins[block]}.")
            corners.append((parameter, tuple(slice(0, size) for size in old_parameters[old_name].shape)))
    for parameter, corner in corners:
        parameter.grad[corner] = 1
    look_at_all(coverage, new)
    assert coverage.never_touched_share() == 1
    for parameter in new.parameters():
        parameter.grad.fill_(1e-30)
    for parameter, corner in corners:
        parameter.grad[corner] = 0
    look_at_all(coverage, new)
    assert coverage.never_touched_share() == 0
    new.zero_grad(set_to_none=False)
    look_at_all(coverage, new)
    assert coverage.never_touched_share() == 0, "one step is enough for ever"


def look_at_all(coverage: GradientCoverage, model) -> None:
    for name, parameter in model.named_parameters():
        coverage.look(name, parameter)


def test_a_closed_coverage_looks_no_more_and_one_of_two_hooks_may_free_the_gradient():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    coverage = GradientCoverage(new, old.config)

    def free(parameter):
        parameter.grad = None

    for parameter in new.parameters():
        parameter.register_post_accumulate_grad_hook(free)
    next_token_loss(new, TOKENS)[0].backward()
    share = coverage.never_touched_share()
    assert 0 < share < 1 and all(parameter.grad is None for parameter in new.parameters())
    coverage.close()
    with torch.no_grad():  # now the identity blocks' inner weights would have gradients
        for name, parameter in new.named_parameters():
            parameter.add_(0.1)
    next_token_loss(new, TOKENS)[0].backward()
    assert coverage.never_touched_share() == share


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_router_that_only_the_balance_loss_moves_is_called_untouched(top_k, is_lean):
    """With one expert a token its gate is a softmax over one logit: the language loss has no gradient there."""
    dense = lively_dense_model(GEOMETRY)
    moe = upcycle_to_moe(dense, n_experts=4, top_k=top_k)
    coverage = GradientCoverage(moe, dense.config)
    config = dataclasses.replace(PRESETS["tiny"], batch_size=4)
    optimizers = prepare_training(moe, config, None, is_lean)
    before = {name: value.clone() for name, value in moe.state_dict().items()}
    coverage.look_at_language_loss(TOKENS[:1])
    assert all(torch.equal(value, before[name]) for name, value in moe.state_dict().items()), "looking moves nothing"
    assert all(parameter.grad is None for parameter in moe.parameters()) and not optimizers[0].state
    for step in range(3):
        coverage.look_at_language_loss(TOKENS[step : step + 1])
        train_step(moe, optimizers, TOKENS[:4], 0.01, config)
        coverage.steps += 1
    assert not torch.equal(moe.blocks[0].mlp.router.weight, before["blocks.0.mlp.router.weight"]), "balance moves it"
    assert coverage.never_touched_by_module()["router"] == (1 if top_k == 1 else 0)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_eight_booleans_make_a_byte(n):
    flags = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    bits_8 = torch.tensor(BITS, dtype=torch.uint8)
    bits = packed(flags, bits_8)
    assert bits.dtype == torch.uint8 and len(bits) == -(-n // 8)
    assert [bool(bits[i // 8] >> (i % 8) & 1) for i in range(n)] == flags.tolist()
    assert unpacked(bits, n, bits_8).bool().equal(flags) and n_set(bits) == flags.sum()


def test_nobody_waits_for_a_step_that_is_watched_and_once_for_each_figure(monkeypatch):
    """Counts what brings a number to the host, or one from there to the device."""
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    coverage = GradientCoverage(new, old.config)
    next_token_loss(new, TOKENS)[0].backward()
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten.nonzero,
                torch.ops.aten.lift_fresh,
            ):
                waits.append(func)
            return func(*args, **kwargs or {})

    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append(tolist) or tolist(tensor))
    for expected, work in (
        (0, lambda: look_at_all(coverage, new)),
        (1, coverage.never_touched_share),
        (1, coverage.never_touched_by_module),
        (1, lambda: torch.zeros(()).item()),
        (1, lambda: torch.tensor([1])),
    ):
        waits.clear()
        with Watch():
            work()
        assert len(waits) == expected


def test_identity_blocks_are_covered_after_three_steps():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 1, 1)  # depth alone: all that is new is one block
    block = next(
        new.blocks[i] for i, o in enumerate(GrowthMaps.between(old.config, new.config).block_origins) if o is None
    )
    writers = [p for name, p in block.named_parameters() if "attention.out" in name or "mlp.down" in name]
    coverage = GradientCoverage(new, old.config)
    train(new, 1, coverage)
    inner = 1 - sum(p.numel() for p in writers) / coverage.new_parameters
    assert coverage.never_touched_share() == pytest.approx(inner)
    by_module = coverage.never_touched_by_module()
    assert by_module["norm"] == by_module["router"] == 1 and by_module["attention"] == pytest.approx(0.75, abs=0.01)
    assert "embedding" not in by_module
    train(new, 2, coverage)
    assert coverage.never_touched_share() == 0 and set(coverage.never_touched_by_module().values()) == {0}


@pytest.mark.parametrize("factor", [1.5, 2])
def test_every_parameter_of_a_grown_model_is_touched_rare_tokens_too(factor):
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, factor, 1)
    coverage = GradientCoverage(new, old.config)
    train(new, 3, coverage)
    assert len(TOKENS.unique()) < 211 and coverage.never_touched_by_module()["embedding"] == 0
    assert coverage.never_touched_share() == 0


def test_what_is_frozen_is_never_touched():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    coverage = GradientCoverage(new, old.config)
    frozen = new.blocks[0].attention.qkv.requires_grad_(False)
    # Cut off, although it requires gradients: they come, and they are zero.
    new.blocks[1].mlp.router.register_forward_hook(lambda _module, _inputs, logits_NE: logits_NE * 0)
    train(new, 3, coverage)
    grown = {name: sum(p.numel() for n, p in new.named_parameters() if name in n) for name in ("router", "attention.")}
    had = {name: sum(p.numel() for n, p in old.named_parameters() if name in n) for name in ("router", "attention.")}
    cut_off = new.blocks[1].mlp.router.weight.numel() - old.blocks[1].mlp.router.weight.numel()
    qkv = sum(p.numel() for p in frozen.parameters()) - sum(p.numel() for p in old.blocks[0].attention.qkv.parameters())
    by_module = coverage.never_touched_by_module()
    assert by_module["router"] == pytest.approx(cut_off / (grown["router"] - had["router"]))
    assert by_module["attention"] == pytest.approx(qkv / (grown["attention."] - had["attention."]))
    assert by_module["embedding"] == by_module["norm"] == 0


def test_experts_without_tokens_are_never_touched():
    dense = lively_dense_model(GEOMETRY)
    moe = upcycle_to_moe(dense)
    coverage = GradientCoverage(moe, dense.config)
    assert coverage.new_parameters == count_parameters(moe).total - count_parameters(dense).total
    loss, routings = next_token_loss(moe, TOKENS[:1, :4])  # six slots for eight experts
    loss.backward()
    idle = sum((routing.slots_per_expert_E[1:] == 0).sum().item() for routing in routings)
    assert idle > 0
    assert coverage.never_touched_by_module()["mlp"] == pytest.approx(idle / (3 * 7), abs=1e-3)
    assert 0 < coverage.never_touched_share() < 1
    report = liveness_report(moe, dense.config, TOKENS[:1, :4], coverage)
    assert report.smallest_expert_share == 0 and min(report.expert_entropies) < 0.9


def test_effective_rank_of_known_matrices():
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(96, 96, generator=generator)
    assert effective_rank_share(torch.eye(16)) == pytest.approx(1)
    assert effective_rank_share(torch.outer(random[0], random[1])) == pytest.approx(1 / 96, rel=1e-3)
    assert effective_rank_share(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2
    )
    assert effective_rank_share(random) > 0.75 and effective_rank_share(random.bfloat16()[:24]) > 0.9
    assert effective_rank_share(random[:, :24]) == pytest.approx(effective_rank_share(random[:, :24].T))
    assert effective_rank_share(torch.zeros(4, 4)) == effective_rank_share(torch.full((4, 4), math.nan)) == 0


def test_clones_without_noise_have_half_the_rank_and_noise_restores_it():
    old = lively_moe_model(GEOMETRY)
    plain, noisy = (scale_bilaterally(old, 2, 1, noise) for noise in (0.0, 1.0))
    ranks = {}
    for name, model in (("old", old), ("plain", plain), ("noisy", noisy)):
        ranks[name] = liveness_report(model, old.config, TOKENS).effective_rank
    for kind in ("qkv", "out", "up", "down"):
        assert ranks["plain"][kind] == pytest.approx(ranks["old"][kind] / 2, abs=1e-6) and ranks["plain"][kind] <= 0.5
        assert ranks["noisy"][kind] > 0.7
    identity = liveness_report(noisy, old.config, TOKENS).identity_effective_rank
    assert identity["out"] == identity["down"] == 0 and identity["qkv"] > 0.9 and identity["up"] > 0.9
    train(noisy, 1)
    identity = liveness_report(noisy, old.config, TOKENS).identity_effective_rank
    assert identity["out"] > 0.1 and identity["down"] > 0.1


def test_expert_use():
    slots = [torch.tensor([5, 5, 5, 5]), torch.tensor([20, 0, 0, 0]), torch.tensor([10, 10, 0, 0])]
    shares = expert_shares([Routing(each, torch.tensor(1.0), torch.tensor(0.0)) for each in slots])
    assert shares[2] == [0.5, 0.5, 0, 0]
    assert [normalised_entropy(layer) for layer in shares] == pytest.approx([1, 0, 0.5])
    assert normalised_entropy([1.0]) == 1


def test_expert_use_in_the_report_is_that_of_the_blocks():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    token_N = torch.arange(TOKENS[:, :-1].numel())
    evenly_NE = torch.eye(8)[token_N % 8] + torch.eye(8)[(token_N + 1) % 8]
    two_experts_NE = torch.eye(8)[[3, 5]].sum(0).expand(len(token_N), 8)
    for index, block in enumerate(new.blocks):
        logits_NE = two_experts_NE if index == 2 else evenly_NE
        block.mlp.router.register_forward_hook(lambda _module, _inputs, _output, logits_NE=logits_NE: logits_NE)
    report = liveness_report(new, old.config, TOKENS)
    assert (report.smallest_expert_share, report.smallest_expert_share_block) == (0, 2)
    assert report.expert_entropies == pytest.approx([1, 1, 1 / 3, 1])


def test_the_report_changes_nothing_and_is_the_same_twice():
    old = lively_moe_model(GEOMETRY)
    new = scale_bilaterally(old, 2, 1)
    new.compute_dtype = torch.bfloat16
    next_token_loss(new, TOKENS)[0].backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in new.named_parameters()}
    stream = torch.get_rng_state()
    coverage = GradientCoverage(new, old.config)
    graphs = []
    handle = new.final_norm.register_forward_hook(lambda _module, _inputs, output: graphs.append(output.requires_grad))
    first, second = (liveness_report(new, old.config, TOKENS, coverage) for _ in range(2))
    handle.remove()
    assert first == second and graphs == [False, False]
    for name, parameter in new.named_parameters():
        assert torch.equal(parameter, before[name][0]) and torch.equal(parameter.grad, before[name][1])
        assert parameter.requires_grad
    assert new.compute_dtype == torch.bfloat16 and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(
    "boundary, dtype",
    [
        ("upcycled", torch.float32),
        ("grown", torch.bfloat16),
        ("dense, grown", torch.float64),
        ("deeper", torch.float32),
    ],
    ids=str,
)
def test_reports_are_json_and_print_in_three_lines(boundary, dtype):
    old = (lively_moe_model if boundary in ("grown", "deeper") else lively_dense_model)(GEOMETRY).to(dtype)
    new = {
        "upcycled": lambda: upcycle_to_moe(old),
        "grown": lambda: scale_bilaterally(old, 1.5, 1),
        "dense, grown": lambda: scale_bilaterally(old, 2, 1),
        "deeper": lambda: scale_bilaterally(old, 1, 1),
    }[boundary]()
    coverage = GradientCoverage(new, old.config)
    next_token_loss(new, TOKENS)[0].backward()
    coverage.steps += 1
    for watched in (None, coverage):
        report = liveness_report(new, old.config, TOKENS, watched)
        rebuilt = json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))
        assert rebuilt == dataclasses.asdict(report)
        lines = report.summary()
        assert len(lines) == 1 + (boundary != "deeper") + (watched is not None)
        assert not any("\n" in line for line in lines) and "effective rank" in lines[-1]
        assert ("experts: share" in lines[-1]) == (boundary != "dense, grown")


def test_summary_names_what_is_dead():
    report = LivenessReport(
        [CloneCosine("heads", 8, 0.5, 1.0, 3)], {"qkv": 0.5}, {"qkv": 0.0}, 0.01, 2, [0.9, 0.7], 4, 1000, 0.25,
        {"norm": 0.0, "router": 0.5},
    )  # fmt: skip
    assert report.summary() == [
        "  clones: cosine heads 0.500; largest 1.000 (heads, block 3)",
        "  gradients: 25.0% of 1,000 new parameters had none by step 4 (router 50.0%)",
        "  effective rank: old blocks qkv 0.50; identity block qkv 0.00; "
        "experts: share ≥ 1.0% (block 2), entropy ≥ 0.70",
    ]


def test_a_model_that_is_no_growth_is_refused():
    moe = lively_moe_model(GEOMETRY)
    smaller = dataclasses.replace(moe.config, vocab_size=100)
    for measure in (lambda: liveness_report(moe, smaller, TOKENS), lambda: GradientCoverage(moe, smaller)):
        with pytest.raises(UserError, match="no growth"):
            measure()
    with pytest.raises(UserError, match="n_experts"):
        liveness_report(lively_dense_model(GEOMETRY), moe.config, TOKENS)
    with pytest.raises(ValueError, match="context length"):
        liveness_report(moe, moe.config, TOKENS.repeat(1, 2))
