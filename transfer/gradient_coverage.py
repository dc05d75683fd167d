"""Which of the parameters that growth added have had a gradient.

    coverage = GradientCoverage(model, old_config)
    for tokens_BT in batches:
        coverage.look_at_language_loss(tokens_BT[:1])
        …  # one step of training
        coverage.steps += 1
    coverage.never_touched_share()

The language loss alone counts: a router that learns nothing of it still has the gradient of its balance loss.
No step waits for the device: the bits stay there, and are counted there when somebody asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model_config import ModelConfig
from models import Transformer, next_token_loss
from models.shards import is_shared, own, own_range, shared_as, whole
from transfer.growth_maps import GrowthMaps

BITS = tuple(1 << i for i in range(8))
# By the first of these that a parameter's name contains.
MODULES = ("norm", "router", "attention", "mlp", "embedding")


def maps_between(old: ModelConfig, new: ModelConfig) -> GrowthMaps:
    """The axes' maps of either boundary. Raises UserError where `new` is no growth of `old`."""
    return GrowthMaps.between(old if old.is_moe else old.upcycled(new.n_experts, new.top_k), new)


class GradientCoverage:
    """Which new parameters have had a gradient other than zero in any step so far.

    New is what the old model did not have: identity blocks, all clones but the first, all experts
    but the first of an upcycled layer, and its router. Zero means exactly zero: a gradient that is
    nothing but rounding counts, and so do the equal gradients of locked clones. This finds what is
    cut off; the cosines find what moves without parting.

    It looks at each gradient when a backward pass completes it, before hooks that are registered later (and may free
    it), or at those of passes of its own. It holds one bit per new parameter, on the parameter's device. Where ranks
    share the model, each watches its own part; then all of them have to ask for the figures and the state.
    """

    def __init__(self, model: Transformer, old_config: ModelConfig):
        """Raises UserError where `model` is no growth of `old_config`."""
        self.steps = 0  # counted by whoever trains
        self._model, self._looks, self._is_own_pass = model, True, False
        self._bits_8 = torch.tensor(BITS, dtype=torch.uint8, device=model.device)
        self._watched: dict[str, list[Watched]] = {}
        maps = maps_between(old_config, model.config)
        with torch.device("meta"):
            old_parameters = dict(Transformer(old_config).named_parameters())
        self._parameters = dict(model.named_parameters())
        for name, parameter in self._parameters.items():
            old = old_parameters.get(maps.old_name(name))
            # A dense matrix is expert 0 of the stack that it became.
            corner = (0,) if old is None else (1,) * (parameter.ndim - old.ndim) + tuple(old.shape)
            parts = [Watched.of(parameter, part) for part in outside_corner(parameter.shape, corner)]
            self._watched[name] = [part for part in parts if part.n_parameters]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, name))
            for name, parameter in self._parameters.items()
            if parameter.requires_grad
        ]

    def look_at_language_loss(self, tokens_BT: Tensor) -> None:
        """Takes note of the gradients of the language loss alone, int64 (B, T + 1), one at a time; none of them is left.

        From then on other backward passes are not looked at. Before a step, when there are no gradients yet.
        """
        self._looks = self._is_own_pass = True
        try:
            next_token_loss(self._model, tokens_BT)[0].backward()
        finally:
            self._looks = self._is_own_pass = False
            self._model.zero_grad(set_to_none=True)

    def _note(self, name: str, parameter: Tensor) -> None:
        if self._looks:
            self.look(name, parameter)
        if self._is_own_pass:
            parameter.grad = None  # no optimizer that moves in the backward pass may take it

    @torch.no_grad()
    def look(self, name: str, parameter: Tensor) -> None:
        """Takes note of the parameter's gradient."""
        for part in self._watched[name]:
            part.seen_bits |= packed(own(parameter.grad)[part.own_where] != 0, self._bits_8)

    def close(self) -> None:
        """Looks no more."""
        for hook in self._hooks:
            hook.remove()

    def state(self) -> dict:
        """What has been seen so far: `steps`, and each part's `seen_bits`."""
        return {"steps": self.steps, "seen": [self._seen(name, part) for name, part in self._parts()]}

    def go_on_from(self, state: dict) -> None:
        """Takes over the `state` of a coverage of the same two geometries."""
        self.steps = state["steps"]
        for (name, part), seen_bits in zip(self._parts(), state["seen"], strict=True):
            part.take_bits(seen_bits, self._parameters[name], self._bits_8)

    @property
    def new_parameters(self) -> int:
        return sum(part.n_parameters for _, part in self._parts())

    def never_touched_share(self) -> float:
        """0 to 1, of all new parameters; 0 where there are none."""
        return sum(untouched for _, untouched, _ in self._counts()) / max(self.new_parameters, 1)

    def never_touched_by_module(self) -> dict[str, float]:
        """The share within each of `MODULES` that has new parameters."""
        totals = {module: [0, 0] for module in MODULES}
        for name, untouched, n_parameters in self._counts():
            total = totals[next(module for module in MODULES if module in name)]
            total[0] += untouched
            total[1] += n_parameters
        return {module: untouched / n for module, (untouched, n) in totals.items() if n}

    def _parts(self) -> list[tuple[str, Watched]]:
        """With the name of each part's parameter."""
        return [(name, part) for name, parts in self._watched.items() for part in parts]

    def _seen(self, name: str, part: Watched) -> Tensor:
        return part.whole_bits(self._parameters[name], self._bits_8)

    def _counts(self) -> list[tuple[str, int, int]]:
        """Each part's parameter, how many of the part have had no gradient, on all ranks together, and its size."""
        parts = self._parts()
        seen = [n_set(self._seen(name, part)) for name, part in parts]
        seen = torch.stack(seen).tolist() if seen else []  # all that anybody waits for
        return [(name, part.n_parameters - n, part.n_parameters) for (name, part), n in zip(parts, seen)]


@dataclass
class Watched:
    """A part of a parameter, and a bit for each of its elements, in bytes of eight, set once it has had a gradient.

    `own_where` is what of the part lies in this rank's own part of the parameter, counted from its beginning;
    the bits are those of its elements.
    """

    where: tuple[slice, ...]
    own_where: tuple[slice, ...]
    n_parameters: int
    seen_bits: Tensor  # uint8

    @classmethod
    def of(cls, parameter: Tensor, where: tuple[slice, ...]) -> Watched:
        dim, first, last = own_range(parameter)
        bounds = [
            where[d].indices(parameter.shape[d])[:2] if d < len(where) else (0, n)
            for d, n in enumerate(parameter.shape)
        ]
        n_parameters = math.prod(stop - start for start, stop in bounds)
        start, stop = bounds[dim]
        bounds[dim] = (min(max(start, first), last) - first, max(min(stop, last), first) - first)
        own_where = tuple(slice(start, max(start, stop)) for start, stop in bounds)
        n_own = math.prod(part.stop - part.start for part in own_where)
        bits = torch.zeros(math.ceil(n_own / 8), dtype=torch.uint8, device=parameter.device)
        return cls(where, own_where, n_parameters, bits)

    def whole_bits(self, parameter: Tensor, bits_8: Tensor) -> Tensor:
        """Those of the part's elements on all ranks, in the order in which a parameter that nobody shares has them."""
        if not is_shared(parameter):
            return self.seen_bits
        seen = torch.zeros_like(parameter, dtype=torch.uint8)
        own_seen = own(seen)[self.own_where]
        own_seen.copy_(unpacked(self.seen_bits, own_seen.numel(), bits_8).view_as(own_seen))
        return packed(whole(seen)[self.where] != 0, bits_8)

    def take_bits(self, whole_bits: Tensor, parameter: Tensor, bits_8: Tensor) -> None:
        """Goes on from what `whole_bits` returned, on however many ranks."""
        if not is_shared(parameter):
            self.seen_bits.copy_(whole_bits)
            return
        seen = torch.zeros(parameter.shape, dtype=torch.uint8, device=parameter.device)
        seen[self.where] = unpacked(whole_bits.to(seen.device), self.n_parameters, bits_8).view_as(seen[self.where])
        self.seen_bits.copy_(packed(own(shared_as(seen, parameter))[self.own_where] != 0, bits_8))


def packed(flags: Tensor, bits_8: Tensor) -> Tensor:
    """Eight booleans a byte, uint8 (⌈n / 8⌉,); `bits_8` are `BITS`, on the device of the flags."""
    flags = F.pad(flags.flatten().to(torch.uint8), (0, -flags.numel() % 8)).view(-1, 8)
    return (flags * bits_8).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, n: int, bits_8: Tensor) -> Tensor:
    """The inverse of `packed`: uint8 (n,), 0 or 1."""
    return ((bits[:, None] & bits_8) != 0).flatten()[:n].to(torch.uint8)


def n_set(bits: Tensor) -> Tensor:
    """How many bits of uint8 (n,) are set, int64 ()."""
    return torch.stack([(bits & bit).count_nonzero() for bit in BITS]).sum()


def outside_corner(shape: torch.Size, corner: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Disjoint parts, one per dimension of `corner`, that make up what lies outside a leading corner.

    Growth appends: the first copies are the leading units of every axis, so an old parameter is
    the leading corner of the grown one.
    """
    inside = [slice(0, size) for size in corner]
    return [(*inside[:dim], slice(size, shape[dim])) for dim, size in enumerate(corner)]
