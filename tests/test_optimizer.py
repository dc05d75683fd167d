"""Which rate each parameter takes."""

import pytest

from config import PRESETS, ModelConfig
from models.transformer import Transformer
from training.optimizer import LONGEST_PERIOD, build_optimizers, muon_periods


@pytest.mark.parametrize(
    "name, is_tied, share, tuned_at",
    [
        ("embedding.weight", True, 0.125, 256),
        ("unembedding.weight", False, 0.125, 256),
        ("blocks.0.mlp.router.weight", True, 0.05, 128),
    ],
)
def test_what_makes_logits_takes_steps_that_move_them_as_far_at_any_width(name, is_tied, share, tuned_at):
    for width, expected in ((tuned_at // 2, share), (tuned_at, share), (4 * tuned_at, share / 4)):
        assert shares(width, is_tied)[name] == expected


def test_the_rates_of_all_others_are_the_same_at_any_width():
    for width in (128, 1024):
        taken = shares(width, is_tied=False)
        assert taken["embedding.weight"] == 0.125  # makes no logits where the output matrix is another
        for name, share in taken.items():
            if name.endswith(("qkv.weight", "out.weight")):
                assert share == 1.0, name
            elif name.endswith(("up.weight", "down.weight")):
                assert share == 0.5**0.5, "each of two experts sees half of the tokens"
            elif "norm" in name or name.endswith("bias"):
                assert share == 0.25, name


def test_a_matrix_has_its_turn_once_it_has_seen_tokens_enough_for_its_width():
    """At the presets, and with the width, the batch and the experts each changed alone."""
    taken = {}
    for preset in ("reference", "tiny"):
        config = PRESETS[preset]
        geometries = config.phase_geometries(vocab_size=16)
        taken[preset] = [muon_periods(model, config.batch_size * config.context_length) for model in geometries]
    assert taken == {"reference": [(1, 1), (1, 5), (2, 10)], "tiny": [(1, 1), (1, 4), (1, 4)]}
    model = ModelConfig(vocab_size=16, d_model=1000, n_layers=1, n_heads=4, n_experts=8, top_k=2)
    assert [muon_periods(model, tokens) for tokens in (1 << 20, 2950, 1967, 1966, 1475, 1179)] == [
        (1, 4), (1, 4), (1, 6), (2, 6), (2, 8), (3, 10)
    ]  # fmt: skip
    assert muon_periods(model, 1) == (LONGEST_PERIOD, LONGEST_PERIOD)
    many = ModelConfig(vocab_size=16, d_model=1000, n_layers=1, n_heads=4, n_experts=64, top_k=2)
    assert muon_periods(many, 1 << 20) == (1, 32), "an expert waits until it has seen what a matrix sees in a step"


def shares(width: int, is_tied: bool) -> dict[str, float]:
    """The share of the learning rate that each parameter takes, by name; each is in one group."""
    config = ModelConfig(
        vocab_size=16, d_model=width, n_layers=1, n_heads=4, n_experts=2, top_k=1, context_length=8, tied=is_tied
    )
    model = Transformer.empty(config)
    groups = [
        group
        for optimizer in build_optimizers(model, weight_decay=0.0, tokens=4096)
        for group in optimizer.param_groups
    ]
    taken = {
        name: [group["share"] for group in groups if any(parameter is wanted for parameter in group["params"])]
        for name, wanted in model.named_parameters()
    }
    assert all(len(found) == 1 for found in taken.values())
    return {name: found[0] for name, found in taken.items()}
