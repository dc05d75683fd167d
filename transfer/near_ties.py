"""Choices that rounding may turn: which experts compute a token, which token comes next.

A choice takes the k best of some logits. Let t = tolerance · rms be the largest movement that the checks accept of a
logit, rms the root mean square of all of them. If the choice changes though no logit moved by more than t, then a
chosen logit a has fallen behind a passed-over one b; so a - b was at most 2 t, and the gap between the last chosen
logit and the first passed over was no larger. **A near-tie is a choice whose gap is at most 2 t.** Any other choice
that changes says that a logit moved further than rounding can move it: a fault.

When a near-tie turns, the token is computed by another expert, and it and the tokens that attend to it differ by as much
as experts do. Both outcomes are right, and they cannot be compared. So the new model is led along the choice that
the old one made (`following`): the choice itself is left out of the verdict, and counted; everything else, that
token and those after it included, is compared as strictly as ever. For the logits that lead it are those of the old
model, which are within rounding of its own.

That would cover up a router that takes the worse of two experts wherever they are close, or two that changed places
with equal rows. So no more than a small share of all choices may be left out (`Precision.turned_share`, 1 % in fp32,
where rounding turns fewer than one in ten thousand); a single one always may, however few the probe's tokens are,
since no token is hidden by it.

Shape letters: N tokens (batch × time), E experts, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from models import Transformer
from transfer.probe import trace
from transfer.rounding import rms


def near_tied(logits: Tensor, k: int, tolerance: float) -> Tensor:
    """Whether rounding may turn the choice of the k best of n logits: (…, n) → bool (…).

    Args:
        tolerance: the largest drift that the checks accept, relative to the root mean square of all logits given.
    """
    if k >= logits.shape[-1]:
        return torch.zeros(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    best = logits.topk(k + 1).values
    return best[..., k - 1] - best[..., k] <= 2 * tolerance * rms(logits)


class RouterChoices:
    """The choices of a new model's routers beside the old model's, block by block."""

    def __init__(self, top_k: int, tolerance: float):
        self.top_k, self.tolerance = top_k, tolerance
        self._by_block: dict[int, tuple[Tensor, Tensor]] = {}

    def compare(self, block: int, old_NE: Tensor, new_NE: Tensor) -> Tensor:
        """Counts one block's choices; returns which are near-ties that turned, bool (N,)."""
        old_Nk, new_Nk = (logits.topk(self.top_k).indices.sort().values for logits in (old_NE, new_NE))
        differs_N = (old_Nk != new_Nk).any(-1)
        near_tied_N = near_tied(old_NE, self.top_k, self.tolerance)
        self._by_block[block] = differs_N & near_tied_N, differs_N & ~near_tied_N
        return self._by_block[block][0]

    @property
    def n(self) -> int:
        return sum(len(turned_N) for turned_N, _ in self._by_block.values())

    @property
    def n_turned(self) -> int:
        """Near-ties that turned: left out of the verdict."""
        return sum(int(turned_N.sum()) for turned_N, _ in self._by_block.values())

    @property
    def n_changed(self) -> int:
        """Choices that changed and were no near-ties."""
        return sum(int(changed_N.sum()) for _, changed_N in self._by_block.values())

    @property
    def smallest_share_kept(self) -> float:
        """Of the tokens in any block, those that keep their experts."""
        return min(1 - (turned | changed).sum().item() / len(turned) for turned, changed in self._by_block.values())

    @property
    def figures(self) -> dict[str, int]:
        return {"choices": self.n, "near_ties_left_out": self.n_turned, "choices_changed": self.n_changed}

    def faults(self, turned_share: float) -> list[str]:
        """What is wrong with them, one sentence each."""
        found = []
        if self.n_changed:
            first = min(block for block, (_, changed_N) in self._by_block.items() if changed_N.any())
            found.append(f"{self.n_changed} choices of experts changed without a near-tie, first in block {first}")
        if self.n_turned > max(1, turned_share * self.n):
            found.append(f"{self.n_turned} of {self.n} choices of experts are left out, more than {turned_share:.0%}")
        return found

    def __str__(self) -> str:
        return f"near-ties: {self.n_turned} of {self.n} choices, left out"


@contextmanager
def recording(model: Transformer) -> Iterator[list[Tensor]]:
    """Yields a list that is filled with the logits of every router, (N, E), by the passes inside; of a dense model none."""
    logits: list[Tensor] = []
    routers = [block.mlp.router for block in model.blocks] if model.config.is_moe else []
    handles = [router.register_forward_hook(lambda _m, _i, logits_NE: logits.append(logits_NE)) for router in routers]
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def following(
    model: Transformer, old_logits: list[Tensor], block_origins: list[int | None], tolerance: float
) -> Iterator[RouterChoices]:
    """Inside, near-ties of the model's routers that turn take the experts that the old model took.

    Args:
        old_logits: of each old block's router, (N, E), on the tokens that the model will be given; none of a dense
            model, which leaves nothing to follow.
        block_origins: as in `GrowthMaps`.
    Yields:
        the choices of the last pass.
    """
    choices = RouterChoices(model.config.top_k, tolerance)

    def lead(_module: nn.Module, _inputs: tuple, new_NE: Tensor, *, block: int, old_NE: Tensor) -> Tensor:
        turned_N = choices.compare(block, old_NE, new_NE)
        return torch.where(turned_N.unsqueeze(-1), old_NE, new_NE)

    handles = [
        model.blocks[block].mlp.router.register_forward_hook(partial(lead, block=block, old_NE=old_logits[origin]))
        for block, origin in enumerate(block_origins)
        if origin is not None and old_logits
    ]
    try:
        yield choices
    finally:
        for handle in handles:
            handle.remove()


def parting(one: list[int], other: list[int]) -> int | None:
    """The place of the first token in which two continuations differ; None where they are the same."""
    if one == other:
        return None
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


@torch.no_grad()
def rounding_parts(
    old_model: Transformer,
    new_model: Transformer,
    block_origins: list[int | None],
    text: list[int],
    tolerance: float,
) -> bool:
    """Whether rounding explains that two greedy continuations part behind a text that they share.

    It does where the old model's two best next tokens are near-tied; or where a router's choice is near-tied in the
    text and the new model, led along the old one's choices, does find the old model's token.
    """
    tokens_BT = torch.tensor([[*text, 0]], device=old_model.device)  # a trace leaves out the last
    old = trace(old_model, tokens_BT)
    with following(new_model, old.router_logits, block_origins, tolerance):
        new_logits_V = trace(new_model, tokens_BT).logits[0, -1]
    if near_tied(old.logits[0], 1, tolerance)[-1]:
        return True
    routers_tied = any(near_tied(logits, old_model.config.top_k, tolerance).any() for logits in old.router_logits)
    return routers_tied and bool(new_logits_V.argmax() == old.logits[0, -1].argmax())
