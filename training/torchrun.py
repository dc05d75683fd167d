"""The processes that torchrun has started: how they come together, and what is said when one is gone.

    torchrun --nproc-per-node=4 train_tinystories.py …

Without torchrun, and with one process, there is nothing to join. One rank that does not come to a step is given up after
`PATIENCE`; one that dies is noticed at once, as its connections close.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from config import TrainingConfig, UserError
from training.ranks import OneProcess, Ranks, use

PATIENCE = {"cpu": timedelta(seconds=50), "cuda": timedelta(minutes=10)}  # the first step on a GPU takes its time
RANK_LOST = 5  # exit code
SAYING_SECONDS = 10.0


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


def launch_command() -> str:
    """What starts so many processes, python or torchrun, up to the script's name."""
    if planned_count() == 1:
        return "python"
    is_one_machine = planned_count() == planned_count_here()
    return f"torchrun --nproc-per-node={planned_count_here()}" + " …" * (not is_one_machine)


@contextlib.contextmanager
def together(config: TrainingConfig, device: torch.device) -> Iterator[torch.device]:
    """Inside, what torchrun has started is one group; gives the device of this rank. CUDA is untested here.

    Raises:
        UserError: the ranks cannot share the batch, or the device.
    """
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
    use(Ranks())
    yield device
    # Not after an error: others may be gone, or wait for this rank in something else.
    dist.destroy_process_group()
    use(OneProcess())


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


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, or did not come in time."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    is_theirs = isinstance(error, dist.DistError) or any(word in str(error) for word in words)
    return planned_count() > 1 and isinstance(error, RuntimeError) and is_theirs


def lost_line(error: BaseException, n_steps: int) -> str:
    """For the user of a run whose rank is gone: who says so, after how many steps, and what was heard."""
    said = " ".join(str(error).split())[:160]
    return f"rank {os.environ['RANK']}: another rank is gone, or did not answer in time, after {n_steps} steps ({said})"


def be_quiet_unless_first() -> None:
    """From here on all ranks but the first print nothing but errors of their own."""
    if not is_first_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def say_once(line: str, is_everybodys: bool) -> None:
    """On stderr, what ended the run: by rank 0, and by another where it is that one's own.

    Where there is no group, all have made the same mistake, and torchrun ends rank 0 as soon as another has left: so they
    wait.
    """
    if is_first_process():
        print(line, file=sys.stderr)
    elif not dist.is_initialized():
        time.sleep(SAYING_SECONDS)
    elif not is_everybodys:
        print(f"rank {dist.get_rank()}: {line}", file=sys.stderr)
