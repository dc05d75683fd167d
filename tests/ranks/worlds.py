"""Ranks that talk over gloo on this machine, forked from a process that has imported everything.

torchrun imports torch anew in each rank, which on a busy machine takes longer than the run; it has its own test, in
test_lost_rank.py. What it tells its processes is told here in the same way: by environment variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint  # noqa: F401  imported once, and not by every rank anew
import torch.distributed.checkpoint.state_dict  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.distributed.tensor  # noqa: F401

import train_tinystories
from config import TrainingConfig
from phases import HISTORY_NAME
from report.history import WALL_CLOCK, read_history
from run import loop
from tests.faults.runs import Child, Outcome, start
from training import torchrun
from training.ranks import team

STEPS = 4  # of each phase
TINY = (
    "--device cpu --preset tiny --tokenizer builtin --d-model 32 --n-heads 2 --n-layers 1 --extra-layers 1 --n-experts 4 "
    f"--batch-size 4 --context-length 32 --steps-phase1 {STEPS} --steps-phase2 {STEPS} --steps-phase3 {STEPS} "
    "--log-every 3 --eval-every 3 --eval-batches 1 --sample-tokens 2"
).split()
LOSSES = ("loss", "loss_before", "loss_after", "balance_loss", "z_loss")


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


@dataclass
class World:
    """A folder with stories and their token cache, where runs of `TINY` are made on any number of ranks."""

    folder: Path

    def run(self, n_ranks: int, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> list[Outcome]:
        """What became of each rank of a new run."""
        return [child.finish() for child in self.begin(n_ranks, folder, *more, prepare=prepare)]

    def begin(self, n_ranks: int, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> list[Child]:
        return begin(n_ranks, [*self.arguments(folder), *more], prepare)

    def arguments(self, folder: Path) -> list:
        data = ("--data", self.folder / "stories.txt", "--cache-dir", self.folder / "cache")
        return [*TINY, *data, "--checkpoint-dir", folder]

    def resume(self, n_ranks: int, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> list[Outcome]:
        arguments = ["--resume", "--checkpoint-dir", folder, *more]
        return [child.finish() for child in begin(n_ranks, arguments, prepare)]


def signal_after(n: int, rank: int, number: int) -> None:
    """In a process that is to become a rank: that one gets the signal after its step number `n`, counted from 1."""
    original, calls = loop.train_step, 0

    def counted(*arguments):
        nonlocal calls
        result = original(*arguments)
        calls += 1
        if calls == n and team().number == rank:
            os.kill(os.getpid(), number)
        return result

    loop.train_step = counted


def rows_of(folder: Path) -> list[dict]:
    """The history without clocks, and without the rows that say how the run was started."""
    rows = [row for row in read_history(folder / HISTORY_NAME) if row["event"] not in ("run", "resumed")]
    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of each kind of loss over two runs, which have the same rows."""
    worst = {}
    for a, b in zip(rows_of(one), rows_of(other), strict=True):
        assert a.keys() == b.keys() and a["event"] == b["event"]
        for name in LOSSES:
            if name in a:
                worst[name] = max(worst.get(name, 0.0), abs(a[name] - b[name]))
    return worst


def on_ranks(n_ranks: int, work: Callable[[], None]) -> None:
    """Calls `work` on ranks that are together. What an assertion says of one of them fails the test."""

    def instead(_arguments) -> int:
        with torchrun.together(TrainingConfig(batch_size=n_ranks), torch.device("cpu")):
            work()
        return 0

    def prepare() -> None:
        train_tinystories.main = instead

    for rank, child in enumerate(begin(n_ranks, [], prepare)):
        outcome = child.finish()
        assert outcome.code == 0, f"rank {rank}: {outcome.err}"
