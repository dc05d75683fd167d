"""The KV cache against computing everything again, and what decoding spares."""

import dataclasses

import pytest
import torch

from models import experts
from models.generation import continuations
from models.kv_cache import KVCache
from models.moe import MoE
from tests.rounding import require_clear_choices, same_story
from tests.talkative import EXPERTS, NEVER, PROMPTS, SMALL, recomputed, talkative_model, tokens


@torch.no_grad()
def largest_drift(model, parts: list[int]) -> float:
    """Of the hidden states when a text is read in these parts, from those when it is read at once."""
    text = tokens(length=sum(parts))
    require_clear_choices(model, text)
    whole, _ = model.hidden(text)
    cache = model.new_cache(2, sum(parts))
    read = [model.hidden(part, cache)[0] for part in text.split(parts, dim=1)]
    return (torch.cat(read, dim=1) - whole).abs().max().item()


TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-11}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_text_read_in_parts_is_the_text_read_at_once(kind, dtype):
    model = talkative_model(n_experts=EXPERTS[kind]).to(dtype)
    for parts in ([1] * 24, [5] + [1] * 19, [3, 4, 1, 16], [24]):
        assert largest_drift(model, parts) < TOLERANCE[dtype], parts


def positions_start_again(extend):
    def broken(cache, n_tokens):
        extend(cache, n_tokens)
        return tuple(table[:n_tokens].expand(1, 1, -1, -1) for table in cache.rope)

    return broken


def positions_are_one_off(extend):
    def broken(cache, n_tokens):
        was_first = not any(cache.lengths)
        rope = extend(cache, n_tokens)
        return rope if was_first else tuple(table[cache.position_BT - 1].unsqueeze(1) for table in cache.rope)

    return broken


def the_first_token_is_forgotten(extend):
    def broken(cache, n_tokens):
        if any(cache.lengths):
            cache.kept_L2BCGK[:, :, :, 0] = 0
        return extend(cache, n_tokens)

    return broken


def padding_is_seen(extend):
    def broken(cache, n_tokens):
        rope = extend(cache, n_tokens)
        cache.mask_B1TS = None
        return rope

    return broken


@pytest.mark.parametrize("fault", [positions_start_again, positions_are_one_off, the_first_token_is_forgotten])
def test_a_broken_cache_is_caught(fault, monkeypatch):
    """Negative controls of the test above, and of the tokens below."""
    model = talkative_model()
    monkeypatch.setattr(KVCache, "extend", fault(KVCache.extend))
    assert largest_drift(model, [5] + [1] * 19) > 0.1
    told = recomputed(model, [1, 2, 3], 20, NEVER)
    assert not same_story(model, [1, 2, 3], told, continuations(model, [[1, 2, 3]], 20, NEVER)[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", EXPERTS)
def test_prompts_of_different_lengths_have_the_tokens_that_recomputing_finds_for_each(kind, dtype):
    model = talkative_model(n_experts=EXPERTS[kind]).to(dtype)
    found = continuations(model, PROMPTS, 18, NEVER)
    for prompt, told in zip(PROMPTS, found):
        assert same_story(model, prompt, recomputed(model, prompt, 18, NEVER), told)
    assert sum(len(set(ids)) for ids in found) > 24, "stories of a few words would show little"


def test_a_lower_precision_is_cached_in_that_precision():
    model = talkative_model()
    exact = continuations(model, PROMPTS, 18, NEVER)
    model.compute_dtype = torch.bfloat16
    assert model.new_cache(1, 4).kept_L2BCGK.dtype == torch.bfloat16
    assert largest_drift(model, [5] + [1] * 19) < 0.2, "of hidden states whose size is 1"
    assert [ids[0] for ids in continuations(model, PROMPTS, 18, NEVER)] == [ids[0] for ids in exact]


def test_padding_that_is_seen_is_caught(monkeypatch):
    """Negative control: without its mask a short prompt would see what stands behind it."""
    model = talkative_model()
    monkeypatch.setattr(KVCache, "extend", padding_is_seen(KVCache.extend))
    found = continuations(model, PROMPTS, 18, NEVER)
    pairs = [(recomputed(model, prompt, 18, NEVER), told) for prompt, told in zip(PROMPTS, found)]
    assert not all(same_story(model, prompt, *pair) for prompt, pair in zip(PROMPTS, pairs))


def test_training_computes_what_it_computed_before_there_was_a_cache():
    """Bit for bit: the plain path is one causal attention over tables from position 0."""
    model = talkative_model()
    batch = tokens()
    with torch.no_grad():
        cached, _ = model.hidden(batch, model.new_cache(2, 24))
        assert torch.equal(model.hidden(batch)[0], cached)


def test_no_more_positions_than_there_is_room_for():
    model = talkative_model()
    with pytest.raises(ValueError, match="context length is 24"):
        model.new_cache(1, 25)
    cache = model.new_cache(2, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="room for 4"):
        model.hidden(tokens(length=5), cache)


def test_one_token_is_computed_by_its_own_experts_alone(monkeypatch):
    calls = []
    linear = experts.expert_linear
    monkeypatch.setattr(experts, "expert_linear", lambda x, *rest: calls.append(len(x)) or linear(x, *rest))
    moe = talkative_model(n_experts=8).blocks[0].mlp
    with torch.no_grad():
        moe(torch.randn(1, 1, 32))
    assert calls == [1] * 4, "up and down of two experts of eight"


def test_experts_that_no_token_goes_to_have_gradients_of_zero(monkeypatch):
    """They are left out of the computation; their gradients must not be what was in memory before."""
    moe = MoE(dataclasses.replace(SMALL, n_experts=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
    empty_like = torch.empty_like

    def dirty(like):
        return empty_like(like).fill_(float("nan")) if like.is_floating_point() else empty_like(like)

    monkeypatch.setattr(torch, "empty_like", dirty)
    y, routing = moe(torch.randn(1, 2, 32))
    y.sum().backward()
    idle = routing.slots_per_expert_E == 0
    assert 4 <= idle.sum() < 8
    for parameter in (*moe.up.parameters(), *moe.down.parameters()):
        assert not parameter.grad[idle].any() and parameter.grad[~idle].flatten(1).any(1).all()
