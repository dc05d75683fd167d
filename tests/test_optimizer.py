"""Which rate each parameter takes."""

import pytest

from config import ModelConfig
from models.transformer import Transformer
from training.optimizer import (
    EMBEDDING_SHARE,
    EMBEDDING_WIDTH,
    ROUTER_SHARE,
    ROUTER_WIDTH,
    build_optimizers,
)


@pytest.mark.parametrize(
    "name, share, tuned_at",
    [
        ("embedding.weight", EMBEDDING_SHARE, EMBEDDING_WIDTH),
        ("unembedding.weight", EMBEDDING_SHARE, EMBEDDING_WIDTH),
        ("blocks.0.mlp.router.weight", ROUTER_SHARE, ROUTER_WIDTH),
    ],
)
def test_what_makes_logits_takes_steps_that_move_them_as_far_at_any_width(name, share, tuned_at):
    for width, expected in ((tuned_at // 2, share), (tuned_at, share), (4 * tuned_at, share / 4)):
        config = ModelConfig(
            vocab_size=16, d_model=width, n_layers=1, n_heads=4, n_experts=2, top_k=1, context_length=8,
            tied=name != "unembedding.weight",
        )  # fmt: skip
        model = Transformer.empty(config)
        wanted = model.get_parameter(name)
        (group,) = [
            group
            for optimizer in build_optimizers(model, weight_decay=0.0)
            for group in optimizer.param_groups
            if any(parameter is wanted for parameter in group["params"])
        ]
        assert group["share"] == expected
