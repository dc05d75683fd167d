"""Small runs of all three phases, in processes of their own that may be killed.

A child is forked from this process, which has imported everything: so a run costs its training alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import train_tinystories
from training.compare import differences
from training.run import MODEL_NAMES
from training.start import LOCK_NAME

SMALL = (
    "--device cpu --preset tiny --data builtin --d-model 16 --n-heads 2 --n-layers 1 --extra-layers 1 --n-experts 4 "
    "--batch-size 4 --context-length 32 --steps-phase1 40 --steps-phase2 30 --steps-phase3 30 --log-every 7 "
    "--eval-every 20 --eval-batches 2 --sample-tokens 4 --lr-phase1 1e-2 --save-every 0"
).split()
# Far more than a run takes: the machine may be busy with others.
PATIENCE_SECONDS = 1200


@dataclass
class Outcome:
    """How a child ended: its exit code, or minus the signal that killed it; and what it printed."""

    code: int
    out: str
    err: str


@dataclass
class Child:
    """A forked run of `train_tinystories.main`."""

    pid: int
    folder: Path  # of its output

    def finish(self) -> Outcome:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"a run did not end within {PATIENCE_SECONDS} s")
            time.sleep(0.005)
        texts = [(self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
        shutil.rmtree(self.folder)
        return Outcome(os.waitstatus_to_exitcode(status), *texts)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def printed(self) -> str:
        return (self.folder / "out").read_text(encoding="utf-8", errors="replace")


def start(arguments: list, prepare: Callable[[], None] = lambda: None) -> Child:
    """Starts a run; `prepare` is called in the child first, to break something there."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, folder)
    code = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        prepare()
        code = train_tinystories.main([str(argument) for argument in arguments])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(folder: Path, cache: Path, *more, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """A small run to its end."""
    return start([*SMALL, "--checkpoint-dir", folder, "--cache-dir", cache, *more], prepare).finish()


def resume(folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """The run in `folder`, resumed, to its end."""
    return start(["--resume", "--checkpoint-dir", folder, *more], prepare).finish()


def parted(expected: Path, folder: Path) -> list[str]:
    """In what the run in `folder` differs from the undisturbed one; empty if it is the same, bit for bit."""
    found = [f"{kind} {text}" for kind, text in differences(expected, folder) if not text.startswith("cache_dir")]
    names = {path.name for path in folder.iterdir()}
    surplus = names - {*MODEL_NAMES.values(), "training_history.jsonl", "training_curves.png", LOCK_NAME}
    return found + ([f"left over: {sorted(surplus)}"] if surplus else [])
