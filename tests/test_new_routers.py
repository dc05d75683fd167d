"""Fresh routers that read what all tokens have in common, and those that are turned away from it."""

import torch

from config import ModelConfig
from models.transformer import Transformer
from test_growth_checks import lively_dense_model, lively_moe_model
from transfer.growth_maps import GrowthMaps
from transfer.liveness import expert_shares
from transfer.probe import trace
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe

GEOMETRY = ModelConfig(vocab_size=211, d_model=64, n_layers=3, n_heads=4, context_length=24)
TOKENS = torch.randint(211, (16, 25), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(211, (16, 25), generator=torch.Generator().manual_seed(1))


def smallest_shares(model: Transformer) -> list[float]:
    """Of any expert, in each block, on tokens that the routers were not turned on."""
    return [min(shares) for shares in expert_shares(model.hidden(OTHERS[:, :-1])[1])]


def leaning(model: Transformer) -> Transformer:
    """With as much in common between tokens as separates them, as in trained models."""
    with torch.no_grad():
        for block in model.blocks:
            block.mlp_norm.bias.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    return model


def test_upcycled_routers_use_all_experts_from_the_first_step():
    dense = leaning(lively_dense_model(GEOMETRY))
    as_drawn, turned = upcycle_to_moe(dense), upcycle_to_moe(dense, tokens_BT=TOKENS)
    assert min(smallest_shares(as_drawn)) < 0.01
    assert min(smallest_shares(turned)) > 0.05
    logits = trace(dense, OTHERS).logits
    torch.testing.assert_close(trace(turned, OTHERS).logits, logits, atol=1e-5, rtol=0)


def test_growth_turns_the_routers_of_new_blocks_alone():
    old = leaning(lively_moe_model(GEOMETRY))
    as_drawn, turned = (scale_bilaterally(old, 2, 2, tokens_BT=tokens) for tokens in (None, TOKENS))
    new_blocks = GrowthMaps.between(old.config, turned.config).new_blocks
    assert len(new_blocks) == 2
    for index, (a, b) in enumerate(zip(as_drawn.blocks, turned.blocks)):
        assert torch.equal(a.mlp.router.weight, b.mlp.router.weight) == (index not in new_blocks)
    means = [inputs.flatten(0, 1).mean(0) for inputs in trace(turned, TOKENS).router_inputs]
    for index in new_blocks:
        preference_E = turned.blocks[index].mlp.router(means[index])
        assert preference_E.abs().max() < 1e-5 < as_drawn.blocks[index].mlp.router(means[index]).abs().max()
    assert torch.equal(trace(as_drawn, OTHERS).logits, trace(turned, OTHERS).logits)
