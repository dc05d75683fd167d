"""The ranks that train one model together: processes that torchrun has started, on one machine or many.

    torchrun --nproc-per-node=4 train_tinystories.py …

Rank 0 alone prints, decides by the clock, and writes all files but the shards of the saved state. Without torchrun, and
with one process, there is no group, and every function here hands on what it is given.

Ranks wait for each other in every step; one that does not come is given up after `PATIENCE`. In `first_alone`, where
rank 0 may tokenise or write for an hour, the others wait by a group of their own that has time. A rank that dies is
noticed at once in either, as its connections close.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from config import TrainingConfig, UserError
from models import Routing

PATIENCE = {"cpu": timedelta(seconds=50), "cuda": timedelta(minutes=10)}  # the first step on a GPU takes its time
LONG = timedelta(days=7)
RANK_LOST = 5  # exit code
SAYING_SECONDS = 10.0
T = TypeVar("T")
_unhurried = None  # the group that has time


class SaidByFirst(UserError):
    """Rank 0's mistake on another rank, which has nothing to add to it."""


def is_first_process() -> bool:
    """Whether torchrun calls this process rank 0; known before there is a group. True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def restarts() -> int:
    """How often torchrun has started the ranks again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launcher() -> str:
    """Names the torchrun that has started this process, alike in all its attempts."""
    return f"{platform.node()} {os.getppid()} {os.environ.get('TORCHELASTIC_RUN_ID', '')}"


def planned_count() -> int:
    """How many ranks torchrun has started; known before there is a group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def planned_count_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return number() == 0


def unhurried():
    """The group for what may take long, such as writing to a disk."""
    return _unhurried


@contextlib.contextmanager
def together(config: TrainingConfig, device: torch.device) -> Iterator[torch.device]:
    """Inside, what torchrun has started is one group; gives the device of this rank. CUDA is untested here.

    Raises:
        UserError: the ranks cannot share the batch, or the device.
    """
    global _unhurried
    if planned_count() == 1:
        yield device
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set, but {', '.join(missing)} not: start with torchrun, or unset WORLD_SIZE")
    require_shareable(config, device, planned_count())
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        # gloo has no all-to-all between dimensions of a tensor, gathers in its place, and would say so on each rank.
        logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=PATIENCE[device.type],
        device_id=device if device.type == "cuda" else None,
        **own_store(PATIENCE[device.type]),
    )
    _unhurried = dist.new_group(backend="gloo", timeout=LONG)
    yield device
    # Not after an error: others may be gone, or wait for this rank in something else.
    dist.destroy_process_group()
    _unhurried = None


def own_store(timeout: timedelta) -> dict:
    """Where the ranks of this attempt find each other, as `init_process_group` takes it; {} leaves that to torch.

    torchrun (2.13) keeps one store for all its attempts, in which ranks that start again find the addresses of dead ones.
    Only on one machine do all ranks know the number of the attempt; on several, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if planned_count() != planned_count_here():
        return {}
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    return {"store": dist.PrefixStore(f"attempt {restarts()}", store), "rank": rank, "world_size": world_size}


def require_shareable(config: TrainingConfig, device: torch.device, n_ranks: int) -> None:
    """Raises UserError where `n_ranks` cannot train with these settings."""
    if device.type not in PATIENCE:
        raise UserError(f"{n_ranks} ranks cannot share --device {device.type}; give --device cpu, or start one process")
    if config.memory == "lean":
        raise UserError(f"--memory lean is for one process; {n_ranks} ranks share the memory: give --memory full")
    parts = n_ranks * config.accumulate
    if config.batch_size % parts:
        larger = -(-config.batch_size // parts) * parts
        raise UserError(
            f"batch_size is {config.batch_size}, which {n_ranks} ranks × {config.accumulate} parts (--accumulate) do not "
            f"divide; give --batch-size {larger}, or other numbers of ranks or parts"
        )


def mesh(device: torch.device):
    """All ranks in one row, as models/shards.py takes them."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (count(),))


def own_rows(tokens_BT: Tensor, parts: int = 1) -> Tensor:
    """This rank's share of a batch that is trained in so many parts: the same number of rows of each of them."""
    if count() == 1:
        return tokens_BT
    by_rank = tokens_BT.unflatten(0, (parts, count(), -1))
    return by_rank[:, number()].flatten(0, 1)


def over_all(loss: Tensor, routings: list[Routing]) -> tuple[Tensor, list[Routing]]:
    """The loss and the routing of the whole batch, of which each rank has computed an equal share: one collective.

    Counts add up, means are averaged. Their gradients stay those of this rank's share, as FSDP averages gradients. So
    the balance loss is that of the whole batch: it is linear in the mean probabilities, and needs of the
    other ranks only the counts.
    """
    if count() == 1:
        return loss.detach(), routings
    means = [loss] + [value for routing in routings for value in (routing.z_loss, routing.probability_E)]
    slots = [routing.slots_per_expert_E for routing in routings]
    # fp64 counts without rounding.
    sums = torch.cat([value.detach().double().reshape(-1) for value in (*means, *slots)])
    dist.all_reduce(sums)
    sums = iter(sums.split([value.numel() for value in (*means, *slots)]))
    loss, *means = [of_all(mean, next(sums) / count()) for mean in means]
    slots = [value.round().long() for value in sums]
    return loss.detach(), [Routing(*layer) for layer in zip(slots, means[1::2], means[::2])]


def of_all(own: Tensor, everyones: Tensor) -> Tensor:
    """The value of `everyones` with the gradient of `own`."""
    return own + (everyones.view_as(own).to(own.dtype) - own).detach()


def mean(value: float) -> float:
    """Over all ranks."""
    if count() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / count()


def gathered(value: T) -> list[T]:
    """What each rank has, in their order."""
    if count() == 1:
        return [value]
    values: list = [None] * count()
    dist.all_gather_object(values, value, group=_unhurried)
    return values


def largest(*values: int) -> list[int]:
    """The largest that any rank has of each of these."""
    if count() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def first_alone(action: Callable[[], T]) -> T:
    """Rank 0 does it, however long it takes; every rank gets what it returned, or its UserError."""
    if count() == 1:
        return action()
    said: list = [None, None]
    mistake = None
    if is_first():
        try:
            said[0] = action()
        except UserError as error:
            mistake, said[1] = error, str(error)
    dist.broadcast_object_list(said, group=_unhurried)
    if mistake:
        raise mistake
    if said[1] is not None:
        raise SaidByFirst(said[1])
    return said[0]


def as_first(value: T) -> T:
    """What rank 0 has here: for all that a clock or a rounding might decide otherwise elsewhere."""
    return first_alone(lambda: value)


def first_before_others(action: Callable[[], T]) -> T:
    """Every rank does it, the others after rank 0, whose files they find; rank 0's UserError is everybody's."""
    results = []
    first_alone(lambda: results.append(action()))
    return results[0] if results else action()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, or did not come in time."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    is_theirs = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
    return planned_count() > 1 and isinstance(error, RuntimeError) and is_theirs


def lost_line(error: BaseException, steps_done: int) -> str:
    """For the user of a run whose rank is gone: who says so, where it was, and what was heard."""
    said = " ".join(str(error).split())[:160]
    return (
        f"rank {os.environ['RANK']}: another rank is gone, or did not answer in time, after {steps_done} steps ({said})"
    )


def be_quiet() -> None:
    """From here on this process prints nothing but errors of its own; for all ranks but the first."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def require_alike(value: object, mistake: str) -> None:
    """Raises UserError, with the ranks that differ, unless all ranks have the same."""
    values = gathered(value)
    differ = [rank for rank, other in enumerate(values) if other != values[0]]
    if differ:
        raise (UserError if is_first() else SaidByFirst)(f"rank {', '.join(map(str, differ))}: {mistake}")


def say_once(text: str, error: BaseException) -> None:
    """On stderr, what ended the run: by rank 0, and by another where it is that one's own.

    Where there is no group, all have made the same mistake, and torchrun ends rank 0 as soon as another has left: so they wait.
    """
    if is_first_process():
        print(text, file=sys.stderr)
    elif not dist.is_initialized():
        time.sleep(SAYING_SECONDS)
    elif dist.is_initialized() and type(error) is UserError:
        print(f"rank {number()}: {text}", file=sys.stderr)
