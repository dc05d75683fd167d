"""Several processes that train one model together: ranks, which torchrun has started on one machine or many.

All that the rest of the code knows of them is `team()`: a process by itself, or one of many that agree. The first of
them alone prints, decides by the clock, and writes all files but the shards of the saved state.

They wait for each other in every step. Where the first may tokenise or write for an hour, the others wait by a group of
their own that has time. training/torchrun.py is how they come together, and part.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from config import UserError
from models import Routing

LONG = timedelta(days=7)
T = TypeVar("T")


class SaidByFirst(UserError):
    """The first one's mistake in another process, which has nothing to add to it."""


class OneProcess:
    """A process that trains by itself: it is the first, has every row, and agrees with itself."""

    size, number = 1, 0

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def first(self, action: Callable[[], T]) -> T:
        """The first does it, however long it takes; all get what it returned, or its UserError."""
        return action()

    def only_first(self, action: Callable[[], T]) -> T | None:
        """The first does it and keeps what it returned, the others get None; its UserError is everybody's."""
        return action()

    def in_turn(self, action: Callable[[], T]) -> T:
        """All do it, the others after the first, whose files they find; its UserError is everybody's."""
        return action()

    def agreed(self, value: T) -> T:
        """What the first has here: for all that a clock or a rounding might decide otherwise elsewhere."""
        return value

    def gathered(self, value: T) -> list[T]:
        """What each has, in their order."""
        return [value]

    def require_alike(self, value: object, mistake: str) -> None:
        """Raises UserError, with the numbers of those that differ, unless all have the same."""

    def largest(self, *values: int) -> list[int]:
        """The largest that any has of each of these."""
        return list(values)

    def mean(self, value: float) -> float:
        return value

    def own_rows(self, tokens_BT: Tensor, parts: int = 1) -> Tensor:
        """This one's share of a batch that is trained in so many parts: the same number of rows of each of them."""
        return tokens_BT

    def over_all(self, loss: Tensor, routings: list[Routing]) -> tuple[Tensor, list[Routing]]:
        """The loss, without a gradient, and the routing of the whole batch, of which each has computed an equal share."""
        return loss.detach(), routings


class Ranks(OneProcess):
    """One of several processes that have joined `torch.distributed`.

    `unhurried`: the group for what may take long, such as writing to a disk.
    """

    def __init__(self):
        self.size, self.number = dist.get_world_size(), dist.get_rank()
        self.unhurried = dist.new_group(backend="gloo", timeout=LONG)

    def mesh(self, device: torch.device):
        """All ranks in one row, as models/shards.py takes them."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device.type, (self.size,))

    def first(self, action: Callable[[], T]) -> T:
        return self._of_first(action, is_shared=True)

    def only_first(self, action: Callable[[], T]) -> T | None:
        return self._of_first(action, is_shared=False)

    def _of_first(self, action: Callable[[], T], is_shared: bool) -> T | None:
        said: list = [None, None]
        result = mistake = None
        if self.is_first:
            try:
                result = action()
                said[0] = result if is_shared else None
            except UserError as error:
                mistake, said[1] = error, str(error)
        dist.broadcast_object_list(said, group=self.unhurried)
        if mistake:
            raise mistake
        if said[1] is not None:
            raise SaidByFirst(said[1])
        return result if self.is_first else said[0]

    def in_turn(self, action: Callable[[], T]) -> T:
        result = self.only_first(action)
        return result if self.is_first else action()

    def agreed(self, value: T) -> T:
        return self.first(lambda: value)

    def gathered(self, value: T) -> list[T]:
        values: list = [None] * self.size
        dist.all_gather_object(values, value, group=self.unhurried)
        return values

    def require_alike(self, value: object, mistake: str) -> None:
        values = self.gathered(value)
        differ = [number for number, other in enumerate(values) if other != values[0]]
        if differ:
            raise (UserError if self.is_first else SaidByFirst)(f"rank {', '.join(map(str, differ))}: {mistake}")

    def largest(self, *values: int) -> list[int]:
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def mean(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.size

    def own_rows(self, tokens_BT: Tensor, parts: int = 1) -> Tensor:
        by_rank = tokens_BT.unflatten(0, (parts, self.size, -1))
        return by_rank[:, self.number].flatten(0, 1)

    def over_all(self, loss: Tensor, routings: list[Routing]) -> tuple[Tensor, list[Routing]]:
        """In one collective: counts add up, means are averaged.

        Gradients stay those of this rank's share, as FSDP averages gradients. So the balance loss is that of the whole
        batch: it is linear in the mean probabilities, and needs of the other ranks only the counts.
        """
        means = [loss] + [value for routing in routings for value in (routing.z_loss, routing.probability_E)]
        slots = [routing.slots_per_expert_E for routing in routings]
        # fp64 counts without rounding.
        sums = torch.cat([value.detach().double().reshape(-1) for value in (*means, *slots)])
        dist.all_reduce(sums)
        sums = iter(sums.split([value.numel() for value in (*means, *slots)]))
        loss, *means = [of_all(mean, next(sums) / self.size) for mean in means]
        slots = [value.round().long() for value in sums]
        return loss.detach(), [Routing(*layer) for layer in zip(slots, means[1::2], means[::2])]


def of_all(own: Tensor, everyones: Tensor) -> Tensor:
    """The value of `everyones` with the gradient of `own`."""
    return own + (everyones.view_as(own).to(own.dtype) - own).detach()


_team = OneProcess()


def team() -> OneProcess | Ranks:
    """Those that train one model together, seen from this process."""
    return _team


def use(members: OneProcess | Ranks) -> None:
    """What `team` gives from here on."""
    global _team
    _team = members
