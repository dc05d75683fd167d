"""Muon (Jordan et al. 2024) for matrices and for stacks of matrices.

The momentum of each matrix is orthogonalised before it is applied, so every direction of a matrix
moves by the same amount, also those in which its gradient is small. `torch.optim.Muon` takes
two-dimensional parameters alone; here the matrices of one parameter are orthogonalised as a batch:
the experts of a stack, gate and up of a gated MLP, and the query, key and value parts of a fused
projection.

Shape letters: N matrices of a stack, O rows (out), I columns (in), G key-value heads, P parts of a fused
projection, K head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from models.lean import compressed, expanded, joined, store
from models.shards import is_shared, own, own_range
from training.bad_steps import EXPLODED
from training.orthogonalise import is_wide, orthogonalise

MOMENTUM = 0.95
# Matrices orthogonalised together: measured a third faster than one by one; more gain little and take memory.
BATCH = 4
# On a CPU, what is done to each number of a matrix is done to so many at once, which its cache holds.
BLOCK = 2**19


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the spectral norm of an update is about lr · √max(1, out / in).

    With that factor one learning rate holds for all widths (Bernstein & Newhouse 2024).

    Orthogonalising all matrices at every step would cost several times the step itself. But few tokens say little of
    a wide matrix, and an expert sees top_k of n_experts tokens. So matrices take turns, the experts of a stack and the
    single matrices of a group: each is moved every `period` steps (`muon_periods` in training/optimizer.py), by its
    momentum over them, and as far as in so many steps.

    A step is either one for all, after the backward pass, or, after `move_in_backward`, each matrix moves
    when its gradient is complete, and the gradient is freed: never do two layers' gradients exist at once.

    Where ranks share the parameters (models/shards.py), each keeps the momentum of its part. Experts of which a rank
    has all rows it orthogonalises by itself; matrices that are split by rows or columns are first exchanged, so that
    each rank has a share of them whole (training/exchange.py).

    Args:
        groups: dicts with `params`, each (…, out, in); `n_heads`: 0, or the heads of fused projections
            (models/attention.py), with `queries_per_kv`; `period`: 1, or as above. Matrices whose places in `params`
            follow each other move one after another.
        dtype: of the orthogonalisation; its result is applied in the parameters' dtype.
        lows: by parameter, of those that are kept in two parts (models/lean.py), the other one.
        is_narrow: keeps the momentum in one byte, see models/lean.py.
    """

    def __init__(
        self,
        groups: list[dict],
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        lows: dict[Tensor, Tensor] | None = None,
        is_narrow: bool = False,
    ):
        super().__init__(
            groups, {"lr": 0.0, "weight_decay": weight_decay, "n_heads": 0, "queries_per_kv": 1, "period": 1}
        )
        self.dtype, self.lows, self.is_narrow = dtype, lows or {}, is_narrow
        self.norms_in_backward: list[Tensor] = []
        self._hooks = []
        self._place = {
            parameter: place for group in self.param_groups for place, parameter in enumerate(group["params"])
        }
        self.is_sound = torch.tensor(True)  # bool (), on the device in training: a step that is not changes nothing

    @torch.no_grad()
    def step(self) -> None:
        waiting: dict[tuple[int, ...], list[Turn]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                turn = self._turn(parameter, group, self.is_sound)
                if is_split_inside(parameter):
                    alike = (*parameter.shape[-2:], group["n_heads"], parameter.placements[0].dim - parameter.ndim)
                    enough = BATCH * parameter.device_mesh.size()
                else:
                    # A tall matrix is orthogonalised as its transpose, together with wide ones.
                    alike, enough = tuple(sorted(turn.directions_NOI.shape[1:])), BATCH
                batch = waiting.setdefault(alike, [])
                batch.append(turn)
                if sum(len(turn.directions_NOI) for turn in batch) >= enough:
                    self._move(waiting.pop(alike), self.is_sound)
        for batch in waiting.values():
            self._move(batch, self.is_sound)

    def move_in_backward(self, largest_norm: float) -> None:
        """From now on the backward pass moves the matrices, at the rates set before it.

        The norm of the whole gradient is known too late to clip by it. Each matrix's gradient is scaled as the
        norm of the step before demands (`end_step` notes it), and is never longer than `largest_norm` by itself.
        Norms before clipping gather in `norms_in_backward`.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                move = partial(self._clip_and_move, group=group, largest_norm=largest_norm)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(move))

    def leave_parameters(self) -> None:
        """From now on no backward pass moves anything. After `move_in_backward` no parameter is freed before this: each
        hook holds all of them, where Python's garbage collection does not look."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _clip_and_move(self, parameter: Tensor, group: dict, largest_norm: float) -> None:
        if parameter.grad is None:  # a gradient to be looked at alone, see GradientCoverage
            return
        norm = norm_of(parameter.grad)
        self.norms_in_backward.append(norm)
        whole_norm = self.state[parameter].get("whole_norm", norm)
        sound = self.is_sound & (norm <= EXPLODED * largest_norm)
        clipping = (largest_norm / (torch.maximum(norm, whole_norm) + 1e-6)).clamp(max=1.0)  # as torch clips
        self._move([self._turn(parameter, group, sound, clipping)], sound)
        parameter.grad = None

    def end_step(self, whole_norm: Tensor) -> None:
        """Notes the norm of the whole gradient, where the next one will be clipped in the backward pass."""
        if self.norms_in_backward:
            for state in self.state.values():
                state["whole_norm"] = torch.where(self.is_sound, whole_norm, state.get("whole_norm", 0.0))
            self.norms_in_backward.clear()

    def _turn(self, parameter: Tensor, group: dict, is_sound: Tensor, clipping: Tensor | None = None) -> Turn:
        """Takes the gradient, times `clipping`, into the momentum; what moves now of the parameter, and along what."""
        state = self.state[parameter]
        if "step" not in state:
            state.update(self.empty_momentum(parameter), step=torch.zeros((), dtype=torch.int64))
        in_turn = self._in_turn(parameter, group)
        state["step"] += 1
        stacks = [parameter.grad, state["momentum_buffer"]] + ([state["momentum_scale"]] if self.is_narrow else [])
        directions = []
        for place, matrices in enumerate(zip(*(as_stack(own(stack)) for stack in stacks))):
            is_moving = place in in_turn
            take_in = partial(self._take_in, is_sound=is_sound, clipping=clipping, is_moving=is_moving)
            blocks = [take_in(*block) for block in blocks_of_rows(*matrices)]
            if is_moving:
                directions.append(torch.cat(blocks, dim=-2))
        if not directions:
            nothing = own(parameter).new_empty(0, *own(parameter).shape[-2:], dtype=self.dtype)
            return Turn(parameter, group, in_turn, nothing)
        if group["n_heads"] and not is_split_inside(parameter):
            directions = split_fused(directions[0], group["n_heads"], group["queries_per_kv"])
        else:
            directions = torch.stack(directions).flatten(0, -3)
        return Turn(parameter, group, in_turn, directions)

    def _take_in(
        self, gradient: Tensor, *momentum: Tensor, is_sound: Tensor, clipping: Tensor | None, is_moving: bool
    ) -> Tensor | None:
        """Takes rows of a gradient into their momentum; along what they move, if they do now."""
        if clipping is not None:
            gradient = gradient.to(clipping.dtype) * clipping
        # A momentum in one byte is rounded once, when all of the step is in it.
        exact = expanded(*momentum) if self.is_narrow else momentum[0]
        exact.add_(torch.where(is_sound, gradient - exact, 0), alpha=1 - MOMENTUM)
        if self.is_narrow:
            for part, value in zip(momentum, compressed(exact)):
                part.copy_(value)
        return gradient.lerp(exact, MOMENTUM).to(self.dtype) if is_moving else None

    def empty_momentum(self, parameter: Tensor) -> dict[str, Tensor]:
        """Zeros, as the state of a parameter holds them."""
        if not self.is_narrow:
            return {"momentum_buffer": torch.zeros_like(parameter)}
        scale = torch.zeros(*parameter.shape[:-1], 1, dtype=torch.float32, device=parameter.device)
        return {"momentum_buffer": torch.zeros_like(parameter, dtype=torch.int8), "momentum_scale": scale}

    def _in_turn(self, parameter: Tensor, group: dict) -> range:
        """Of the places in this rank's part of the parameter, `as_stack`, those that have their turn."""
        dim, start, _ = own_range(parameter)
        if parameter.ndim == 2:
            first = self._place[parameter]
        else:
            first = start if dim == 0 else 0
        period = group["period"]
        return range((int(self.state[parameter]["step"]) - first) % period, len(as_stack(own(parameter))), period)

    def _move(self, batch: list[Turn], is_sound: Tensor) -> None:
        """Moves parameters by their directions, which are all of one shape or its transpose."""
        batch = [turn for turn in batch if len(turn.directions_NOI)]
        if not batch:
            return
        orthogonalised = orthogonalised_over_ranks if is_split_inside(batch[0].parameter) else orthogonalised_here
        for (parameter, group, in_turn, _), update in zip(batch, orthogonalised(batch)):
            O, I = parameter.shape[-2:]
            O = O // (group["queries_per_kv"] + 2) if group["n_heads"] else O
            lr = group["lr"] * group["period"]
            decay = torch.where(is_sound, 1 - lr * group["weight_decay"], 1.0)
            for place, update in zip(in_turn, update.unflatten(0, (len(in_turn), -1))):
                whole = self._parts(parameter, place)
                for *parts, update in blocks_of_rows(*whole, update.view_as(whole[0])):
                    with as_numbers(parts) as moving:
                        update = torch.where(is_sound, update, 0)
                        moving.mul_(decay).add_(update, alpha=-lr * math.sqrt(max(1, O / I)))

    def _parts(self, parameter: Tensor, place: int) -> list[Tensor]:
        """What is at a place of this rank's part of the parameter, `as_stack`: a matrix, or the two parts of one."""
        parts = [parameter.detach()] + ([self.lows[parameter]] if parameter in self.lows else [])
        return [as_stack(own(part))[place] for part in parts]


class Turn(NamedTuple):
    """What moves in one step of a parameter."""

    parameter: Tensor
    group: dict
    in_turn: range  # places in this rank's part of it, `as_stack`
    directions_NOI: Tensor  # before orthogonalisation; fused projections unsplit where ranks have parts of matrices


def as_stack(tensor: Tensor) -> Tensor:
    """A view (n, …, out, in) of what is shaped like a parameter: of one matrix, or of the matrices of a stack."""
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor


def blocks_of_rows(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views (…, rows, in) of the same rows of several matrices (…, out, in), as many as are worked on at once."""
    rows, numbers = matrices[0].shape[-2], matrices[0].numel()
    if matrices[0].device.type == "cpu" and numbers > BLOCK:
        rows = max(1, rows * BLOCK // numbers)
    return zip(*(matrix.split(max(1, rows), dim=-2) for matrix in matrices))


@contextmanager
def as_numbers(parts: list[Tensor]) -> Iterator[Tensor]:
    """A tensor, or what two parts of one are together, to be changed in place."""
    if len(parts) == 1:
        yield parts[0]
    else:
        yield (exact := joined(*parts))
        store(exact, *parts)


def norm_of(gradient: Tensor) -> Tensor:
    """Its Euclidean norm in fp32 or better, (), without a copy of all of it."""
    exact = torch.promote_types(gradient.dtype, torch.float32)
    blocks = (block for matrix in as_stack(gradient) for (block,) in blocks_of_rows(matrix))
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(block.to(exact)) for block in blocks]))


def is_split_inside(parameter: Tensor) -> bool:
    """Whether no rank has a whole matrix of it; of a stack they may have whole experts."""
    return is_shared(parameter) and parameter.placements[0].dim >= parameter.ndim - 2


def orthogonalised_here(batch: list[Turn]) -> Iterator[Tensor]:
    """The updates of a batch, each shaped like its directions, a fused projection's joined again."""
    wide = [
        directions if is_wide(directions) else directions.mT for directions in (turn.directions_NOI for turn in batch)
    ]
    updates = orthogonalise(torch.cat(wide)).split([len(directions) for directions in wide])
    for turn, update in zip(batch, updates):
        update = update if is_wide(turn.directions_NOI) else update.mT
        fused = turn.group["n_heads"], turn.group["queries_per_kv"]
        yield join_fused(update, *fused) if turn.group["n_heads"] else update


def orthogonalised_over_ranks(batch: list[Turn]) -> tuple[Tensor, ...]:
    """The same of parameters that are all of one shape, and split among ranks alike, by rows or by columns."""
    from training.exchange import on_whole_matrices

    first = batch[0]
    parameter, n_heads = first.parameter, first.group["n_heads"]

    def work(matrices_nOI: Tensor) -> Tensor:
        if len(matrices_nOI) == 0:  # fewer matrices than ranks
            return matrices_nOI
        if not n_heads:
            return next(orthogonalised_here([first._replace(directions_NOI=matrices_nOI)]))
        fused = n_heads, first.group["queries_per_kv"]
        parts = [first._replace(directions_NOI=split_fused(matrix_OI, *fused)) for matrix_OI in matrices_nOI]
        return torch.stack(list(orthogonalised_here(parts)))

    dim = parameter.placements[0].dim - parameter.ndim + 3
    own_part = torch.cat([turn.directions_NOI for turn in batch])
    updates = on_whole_matrices(work, own_part, parameter.shape[-2:], dim, parameter.device_mesh)
    return updates.split([len(turn.directions_NOI) for turn in batch])


def split_fused(weight_OI: Tensor, n_heads: int, queries_per_kv: int = 1) -> Tensor:
    """Rows (key-value head, its queries|key|value, feature) as matrices (part, key-value heads · features, in).

    The parts are of one shape: the values, the keys, and of the queries the first of each key-value head, the second …
    """
    weight_GPKI = weight_OI.unflatten(0, (n_heads // queries_per_kv, queries_per_kv + 2, -1))
    return weight_GPKI.transpose(0, 1).flatten(1, 2)


def join_fused(stack_POI: Tensor, n_heads: int, queries_per_kv: int = 1) -> Tensor:
    """The inverse of `split_fused`."""
    return stack_POI.unflatten(1, (n_heads // queries_per_kv, -1)).transpose(0, 1).flatten(0, 2)
