"""For tests that compare what two ways compute: what they compare must not hang on rounding."""

import torch
from torch import Tensor

from models import Transformer
from transfer.near_ties import near_tied, parting, rounding_parts
from transfer.probe import trace
from transfer.rounding import precision_of


def require_clear_choices(model: Transformer, tokens_BT: Tensor) -> None:
    """Fails where rounding may send one of these tokens to another expert: the test has to take others."""
    tolerance = precision_of(model).tolerance
    seen = trace(model, torch.nn.functional.pad(tokens_BT, (0, 1)))  # it leaves out the last
    for logits_NE in seen.router_logits:
        assert not near_tied(logits_NE, model.config.top_k, tolerance).any(), "take another seed for this test"


def same_story(model: Transformer, prompt: list[int], story: list[int], other: list[int]) -> bool:
    """Whether two greedy continuations by one model are the same, or part where rounding decides."""
    place = parting(story, other)
    if place is None:
        return True
    origins = list(range(model.config.n_layers))
    return rounding_parts(model, model, origins, prompt + story[:place], precision_of(model).tolerance)
