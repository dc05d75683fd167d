"""One step, one growth on ranks against the same on one: layouts of the parameters, moments, checks; and faults, found."""

import dataclasses

import pytest
import torch

import training.muon
import training.step
from config import ModelConfig, TrainingConfig
from models import Transformer, build_dense_model, build_moe_model, next_token_loss
from models.shards import own, shared_dim, whole
from run.state_shards import lay_out
from tests.ranks.worlds import on_ranks
from training.bad_steps import is_sound
from training.optimizer import read_moments
from training.ranks import OneProcess, Ranks, team, use
from training.step import prepare_training, train_step
from transfer.gradient_coverage import GradientCoverage
from transfer.optimizer_growth import grow_optimizer_state
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import (
    check_functional_identity,
    check_rope_integrity,
    check_router_scaling,
    check_symmetry_breaking,
)

CPU = torch.device("cpu")
N_RANKS = 4
GEOMETRY = ModelConfig(vocab_size=53, d_model=24, n_layers=2, n_heads=2, n_experts=4, top_k=2, context_length=16)
LLAMA = dataclasses.replace(
    GEOMETRY, n_layers=1, n_heads=4, d_model=32, architecture="llama", queries_per_kv=2, hidden_ratio=2.5
)
CONFIG = TrainingConfig(batch_size=8, accumulate=2, memory="full", weight_decay=0.1)
# Which dimension is split: experts where ranks divide them, their rows where they do not, rows of unequal number.
LAYOUTS = {
    "dense": (dataclasses.replace(GEOMETRY, n_experts=0), 0),
    "two experts each": (dataclasses.replace(GEOMETRY, n_layers=1, n_experts=8), 0),
    "fewer experts than ranks": (dataclasses.replace(GEOMETRY, n_layers=1, n_experts=2), 1),
    "experts that ranks do not divide": (dataclasses.replace(GEOMETRY, n_layers=1, n_experts=6), 1),
    "as Pythia": (dataclasses.replace(GEOMETRY, tied=False, parallel_residual=True, rotary_share=0.5), 0),
    "Llama, dense": (dataclasses.replace(LLAMA, n_experts=0, n_layers=2), 0),
    "Llama, two experts each": (dataclasses.replace(LLAMA, n_experts=8), 0),
    "Llama, rows of experts": (dataclasses.replace(LLAMA, n_experts=3), 2),
    "matrices in turn": (dataclasses.replace(GEOMETRY, d_model=64), 0),  # every second step, experts every third
    "columns, and uneven rows": (dataclasses.replace(GEOMETRY, d_model=26, n_heads=1, n_layers=1, n_experts=3), 1),
}


def tokens(step: int) -> torch.Tensor:
    return torch.randint(53, (8, 17), generator=torch.Generator().manual_seed(step))


def built(config: ModelConfig) -> Transformer:
    return build_moe_model(config) if config.is_moe else build_dense_model(config)


def trained(model: Transformer, steps: int, rows=lambda tokens: tokens) -> tuple[list[torch.Tensor], list]:
    """Losses and norms of some steps, and the optimizers."""
    optimizers = prepare_training(model, CONFIG, None, is_lean=False)
    figures = []
    for step in range(steps):
        loss, _, norm = train_step(model, optimizers, rows(tokens(step)), 0.02, CONFIG)
        figures += [loss, norm]
    return figures, optimizers


def alone(work):
    """What `work` gives without the other ranks, whose group this process is nevertheless in."""
    members = team()
    use(OneProcess())
    try:
        return work()
    finally:
        use(members)


def largest_difference(model: Transformer, expected: Transformer) -> float:
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    return max((whole(ours) - theirs).abs().max().item() for ours, theirs in pairs)


def same_steps(config: ModelConfig) -> tuple[float, float]:
    """How far figures and weights are from those of one rank after three steps."""
    reference = built(config)
    expected, _ = alone(lambda: trained(reference, 3))
    model = lay_out(built(config), CPU)
    found, _ = trained(model, 3, lambda tokens: team().own_rows(tokens, CONFIG.accumulate))
    apart = max((a - b).abs().item() for a, b in zip(found, expected))
    return apart, largest_difference(model, reference)


def test_steps_on_ranks_are_those_of_one_in_every_layout():
    def work():
        for name, (config, dim) in LAYOUTS.items():
            if config.is_moe:
                shape = built(config).blocks[0].mlp.up.weight.shape
                assert shared_dim(shape, team().size) == dim, name
            figures, weights = same_steps(config)
            assert figures < 3e-5 and weights < 1e-4, (name, figures, weights)

    on_ranks(N_RANKS, work)


def counts_stay_apart(patch):
    over_all = Ranks.over_all
    patch.setattr(Ranks, "over_all", lambda self, loss, routings: (over_all(self, loss, routings)[0], routings))


def one_block_keeps_its_gradients_to_itself(patch):
    def apart(model, tokens_BT):
        if hasattr(model, "reshard"):
            model.blocks[0].set_requires_gradient_sync(False)
        return next_token_loss(model, tokens_BT)

    patch.setattr(training.step, "next_token_loss", apart)


def each_trains_on_the_first_rows(patch):
    patch.setattr(Ranks, "own_rows", lambda self, tokens, parts=1: tokens[: len(tokens) // self.size])


def matrices_are_orthogonalised_by_parts(patch):
    patch.setattr(training.muon, "is_split_inside", lambda parameter: False)


def experts_move_out_of_turn(patch):
    patch.setattr(training.muon, "own_range", lambda tensor: (0, 0, 0))


FAULTS = [
    counts_stay_apart,
    one_block_keeps_its_gradients_to_itself,
    each_trains_on_the_first_rows,
    matrices_are_orthogonalised_by_parts,
    experts_move_out_of_turn,
]


def test_faults_in_a_step_are_found():
    config = dataclasses.replace(GEOMETRY, n_layers=1, top_k=1)

    def work():
        assert max(same_steps(config)) < 1e-4
        for fault in FAULTS:
            with pytest.MonkeyPatch.context() as patch:
                fault(patch)
                assert max(same_steps(config)) > 1e-3, fault.__name__
        assert max(same_steps(config)) < 1e-4

    on_ranks(2, work)


def test_a_bad_loss_on_one_rank_is_a_step_that_none_takes():
    def work():
        model = lay_out(built(GEOMETRY), CPU)
        optimizers = prepare_training(model, CONFIG, None, is_lean=False)
        before = [own(parameter).clone() for parameter in model.parameters()]

        def bad(model, tokens_BT):
            loss, routings = next_token_loss(model, tokens_BT)
            return loss * (torch.inf if team().number == 1 else 1), routings

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.step, "next_token_loss", bad)
            loss, _, norm = train_step(model, optimizers, team().own_rows(tokens(0), 2), 0.02, CONFIG)
        assert not is_sound(loss, norm, CONFIG.grad_clip)
        assert all(torch.equal(own(p), b) for p, b in zip(model.parameters(), before))
        loss, _, norm = train_step(model, optimizers, team().own_rows(tokens(0), 2), 0.02, CONFIG)
        assert is_sound(loss, norm, CONFIG.grad_clip)
        assert not all(torch.equal(own(p), b) for p, b in zip(model.parameters(), before))

    on_ranks(2, work)


def test_growth_on_ranks_gives_the_same_bits_and_none_holds_more_than_its_part():
    def work():
        dense = build_dense_model(dataclasses.replace(GEOMETRY, n_experts=0))
        shared = lay_out(dense, CPU)
        few = tokens(0)[:2]
        moe, shared_moe = (upcycle_to_moe(model, 4, 2, tokens_BT=few) for model in (dense, shared))
        large, shared_large = (scale_bilaterally(model, 1.5, 1, tokens_BT=few) for model in (moe, shared_moe))
        for expected, model in ((dense, shared), (moe, shared_moe), (large, shared_large)):
            assert largest_difference(model, expected) == 0.0
            held = sum(own(parameter).numel() for parameter in model.parameters())
            total = sum(parameter.numel() for parameter in expected.parameters())
            assert held <= total / N_RANKS * 1.1
        # Moments through both boundaries.
        _, optimizers = alone(lambda: trained(dense, 2))
        _, shared_optimizers = trained(shared, 2, lambda tokens: team().own_rows(tokens, CONFIG.accumulate))
        for way in ("grown", "asymmetric"):
            states = [read_moments(dense, optimizers), read_moments(shared, shared_optimizers)]
            for old, new in ((dense.config, moe.config), (moe.config, large.config)):
                states = [grow_optimizer_state(state, old, new, way) for state in states]
                for name, moments in states[0].items():
                    for key, value in moments.items():
                        ours = states[1][name][key]
                        assert ours.shape == value.shape and (value.ndim == 0 or own(ours).numel() < value.numel())
                        torch.testing.assert_close(whole(ours), value, atol=1e-5, rtol=1e-3)

    on_ranks(N_RANKS, work)


def test_the_checks_pass_on_ranks_and_fail_where_growth_is_wrong():
    def work():
        model = lay_out(build_moe_model(GEOMETRY), CPU)
        trained(model, 2, lambda tokens: team().own_rows(tokens, CONFIG.accumulate))
        grown, locked = (scale_bilaterally(model, 2, 1, noise_std=noise) for noise in (1.0, 0.0))
        checks = (check_rope_integrity, check_router_scaling, check_symmetry_breaking, check_functional_identity)
        assert all(check(model, grown) for check in checks)
        assert not check_symmetry_breaking(model, locked)
        grown.rest()
        with torch.no_grad():
            own(grown.blocks[0].mlp.router.weight).mul_(2)
        assert not check_router_scaling(model, grown)
        with torch.no_grad():
            own(grown.blocks[0].attention.qkv.weight).mul_(2)
        assert not check_rope_integrity(model, grown) and not check_functional_identity(model, grown)

    on_ranks(2, work)


def test_coverage_on_ranks_sees_what_one_sees_and_goes_on_anywhere():
    def work():
        config = dataclasses.replace(GEOMETRY, n_experts=6)  # the stacks are split by rows
        small = config.upcycled(0, 2)
        reference, model = built(config), lay_out(built(config), CPU)
        coverages = [GradientCoverage(each, small) for each in (reference, model)]
        # The last row alone has the token 52: elsewhere its embedding has no gradient. No expert sees many tokens.
        for each, rows in ((reference, tokens(0)[:4]), (model, tokens(0)[:4].chunk(team().size)[team().number])):
            next_token_loss(each, rows[:, :3])[0].backward()
        states = [coverage.state() for coverage in coverages]
        assert all(torch.equal(a, b) for a, b in zip(states[0]["seen"], states[1]["seen"], strict=True))
        assert 0 < coverages[0].never_touched_share() == coverages[1].never_touched_share() < 1
        assert coverages[0].never_touched_by_module() == coverages[1].never_touched_by_module()
        others = [GradientCoverage(each, small) for each in (model, reference)]
        for other, state in zip(others, states):
            assert other.never_touched_share() == 1
            other.go_on_from(state)
            assert other.never_touched_share() == coverages[0].never_touched_share()

    on_ranks(2, work)
