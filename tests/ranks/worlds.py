"""Ranks that talk over gloo on this machine, forked from a process that has imported everything.

torchrun imports torch anew in each rank, which on a busy machine takes longer than the run; it has its own test, in
test_lost_rank.py. What it tells its processes is told here in the same way: by environment variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint  # noqa: F401  imported once, and not by every rank anew
import torch.distributed.checkpoint.state_dict  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.distributed.tensor  # noqa: F401

import train_tinystories
from config import TrainingConfig
from tests.faults.runs import Child, Outcome, start
from training import ranks

TINY = (
    "--device cpu --preset tiny --tokenizer builtin --data builtin --d-model 32 --n-heads 2 --n-layers 2 --extra-layers 1 "
    "--n-experts 4 --batch-size 4 --context-length 32 --steps-phase1 6 --steps-phase2 6 --steps-phase3 6 --log-every 4 "
    "--eval-every 4 --eval-batches 1 --sample-tokens 2"
).split()


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def environment(rank: int, n_ranks: int, port: str) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def begin(n_ranks: int, arguments: list, prepare: Callable[[], None] = lambda: None) -> list[Child]:
    """Starts a run on so many ranks; `prepare` is called in each first, and may break something there."""
    port = free_port()

    def prepared(rank: int) -> Callable[[], None]:
        def ready() -> None:
            os.environ.update(environment(rank, n_ranks, port))
            prepare()

        return ready if n_ranks > 1 else prepare

    return [start(arguments, prepared(rank)) for rank in range(n_ranks)]


def run(n_ranks: int, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> list[Outcome]:
    """What became of each rank of a new run."""
    arguments = [*TINY, "--checkpoint-dir", folder, *more]
    return [child.finish() for child in begin(n_ranks, arguments, prepare)]


def resume(n_ranks: int, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> list[Outcome]:
    arguments = ["--resume", "--checkpoint-dir", folder, *more]
    return [child.finish() for child in begin(n_ranks, arguments, prepare)]


def on_ranks(n_ranks: int, work: Callable[[], None]) -> None:
    """Calls `work` on ranks that are together. What an assertion says of one of them fails the test."""

    def instead(_arguments) -> int:
        with ranks.together(TrainingConfig(batch_size=n_ranks), torch.device("cpu")):
            work()
        return 0

    def prepare() -> None:
        train_tinystories.main = instead

    for rank, child in enumerate(begin(n_ranks, [], prepare)):
        outcome = child.finish()
        assert outcome.code == 0, f"rank {rank}: {outcome.err}"
