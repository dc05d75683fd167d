"""Growth that is broken in one way at a time, and near-ties to hide it behind: what the checks must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models import Transformer
from transfer.growth_maps import block_origins
from transfer.probe import trace
from transfer.rounding import precision_of, rms
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import FUNCTION_HINT, ROPE_HINT, ROUTER_HINT, SYMMETRY_HINT

HINTS = {"rope": ROPE_HINT, "router": ROUTER_HINT, "symmetry": SYMMETRY_HINT, "functional": FUNCTION_HINT}


class Fault(NamedTuple):
    """`breaks` changes the grown model in place, or returns a broken one; `prepares` changes the old one before."""

    check: str  # that names the fault
    breaks: Callable[[Transformer, Transformer], Transformer | None]
    factor: float = 2
    extra: int = 2
    prepares: Callable[[Transformer], None] = lambda old: None

    @torch.no_grad()
    def grown(self, old: Transformer, seed: int = 0) -> Transformer:
        """The old model, prepared in place, grown and broken."""
        self.prepares(old)
        new = scale_bilaterally(old, self.factor, self.extra, seed=seed).requires_grad_(False)
        return self.breaks(old, new) or new


def read_as(model: Transformer, **changes) -> Transformer:
    """The same weights under another geometry."""
    other = Transformer.empty(dataclasses.replace(model.config, **changes), dtype=model.embedding.weight.dtype)
    other.load_state_dict(model.state_dict())
    return other


def leave_heads_as_many(old: Transformer, new: Transformer) -> Transformer:
    return read_as(new, n_heads=old.config.n_heads)


def halve_heads(old: Transformer, new: Transformer) -> Transformer:
    return read_as(new, n_heads=old.config.n_heads // 2)


def double_heads(old: Transformer, new: Transformer) -> Transformer:
    return read_as(new, n_heads=2 * new.config.n_heads)


def change_rotary_base(_old: Transformer, new: Transformer) -> Transformer:
    return read_as(new, rope_base=500.0)


def shift_query_rows(_old: Transformer, new: Transformer) -> None:
    for block in new.blocks:
        rows = block.attention.qkv.weight.view(new.config.n_heads, 3, new.config.head_dim, -1)
        rows[:, 0] = rows[:, 0].roll(1, dims=1)


def leave_routers_undivided(_old: Transformer, new: Transformer) -> None:
    for block in new.blocks:
        block.mlp.router.weight *= 2


def leave_out_noise(old: Transformer, _new: Transformer) -> Transformer:
    return scale_bilaterally(old, 2, 2, noise_std=0.0)


def make_noise_inert(old: Transformer, _new: Transformer) -> Transformer:
    return scale_bilaterally(old, 2, 2, noise_std=1e-5)


def leave_out_the_noise_of_one_matrix(old: Transformer, new: Transformer) -> None:
    silent = scale_bilaterally(old, 2, 2, noise_std=0.0)
    new.blocks[2].mlp.down.weight.copy_(silent.blocks[2].mlp.down.weight)


def leave_the_head_as_it_was(_old: Transformer, new: Transformer) -> None:
    new.final_norm.weight *= 2
    new.final_norm.bias *= 2


def copy_the_last_block(old: Transformer, new: Transformer) -> None:
    origins = block_origins(old.config.n_layers, 2)
    last = origins.index(old.config.n_layers - 1)
    new.blocks[origins.index(None)].load_state_dict(new.blocks[last].state_dict())


def put_noise_on_rows(_old: Transformer, new: Transformer) -> None:
    """Opposite signs over the rows that clones produce, in place of the columns that they are read by."""
    weight = new.blocks[2].mlp.up.weight
    half = (new.config.n_experts, weight.shape[1] // 2, weight.shape[2])
    noise = 0.5 * weight.std() * torch.randn(half, generator=torch.Generator().manual_seed(0))
    weight += torch.cat((noise, -noise), dim=1).to(weight)


def leave_out_the_gain_for_mean_features(_old: Transformer, new: Transformer) -> None:
    new.blocks[1].attention_norm.weight *= 1.5**0.5


def move_router_logits_by_thrice_the_tolerance(_old: Transformer, new: Transformer) -> None:
    tolerance = precision_of(new).tolerance
    for block in new.blocks:
        weight = block.mlp.router.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        # Over copies that hold the same value a reader's weights add up, and so must its error.
        weight += 3 * tolerance * rms(weight.unflatten(1, (2, -1)).sum(1)) * noise / 2**0.5


def make_two_router_rows_close(old: Transformer) -> None:
    for block in old.blocks:
        weight = block.mlp.router.weight
        weight[1] = weight[0] * (1 + 0.1 * precision_of(old).tolerance)


def exchange_two_close_router_rows(_old: Transformer, new: Transformer) -> None:
    """No logit moves by more than a tenth of the tolerance or so, and two experts that differ change places."""
    for block in new.blocks:
        block.mlp.router.weight[:2] = block.mlp.router.weight[:2].flip(0)


FAULTS = {
    "heads not scaled": Fault("rope", leave_heads_as_many),
    "fewer heads": Fault("rope", halve_heads),
    "more heads": Fault("rope", double_heads),
    "rotary base changed": Fault("rope", change_rotary_base),
    "query rows of heads shifted": Fault("rope", shift_query_rows),
    "router not divided": Fault("router", leave_routers_undivided),
    "router off by thrice the tolerance": Fault("router", move_router_logits_by_thrice_the_tolerance),
    "two close rows of a router exchanged": Fault(
        "functional", exchange_two_close_router_rows, prepares=make_two_router_rows_close
    ),
    "noise missing": Fault("symmetry", leave_out_noise),
    "noise inert": Fault("symmetry", make_noise_inert),
    "noise missing in one matrix": Fault("symmetry", leave_out_the_noise_of_one_matrix),
    "tied head not rescaled": Fault("functional", leave_the_head_as_it_was),
    "last block copied": Fault("functional", copy_the_last_block),
    "noise on the wrong axis": Fault("functional", put_noise_on_rows),
    "gain for mean features missing": Fault("functional", leave_out_the_gain_for_mean_features, 1.5, 0),
}


@torch.no_grad()
def add_near_ties(model: Transformer, tokens: Tensor, places: tuple[int, ...] = (0, 5, 11)) -> None:
    """Turns one choice a block into a tie, in place: of the token at `places[i]` (of all, row after row) in block i.

    Of tokens (batch, time + 1), as the checks take them.

    The router's row of the first expert passed over moves along the token's own input, until its logit is that of the
    last expert chosen, as far as the dtype can say.
    """
    for index, place in enumerate(places[: model.config.n_layers]):
        seen = trace(model, tokens)  # blocks before this one were changed
        x_D = seen.router_inputs[index].flatten(0, 1)[place].double()
        weight_ED = model.blocks[index].mlp.router.weight
        order = (weight_ED.double() @ x_D).argsort(descending=True)
        last, first = order[model.config.top_k - 1], order[model.config.top_k]
        gap = (weight_ED[last] - weight_ED[first]).double() @ x_D
        weight_ED[first] += (gap / x_D.square().sum() * x_D).to(weight_ED.dtype)
