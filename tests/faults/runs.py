"""Small runs of all three phases, in processes of their own that may be killed.

A child is forked from this process, which has imported everything: so a run costs its training alone, some
three seconds, and can be killed two hundred times.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2  # noqa: F401  these are imported here once, and not by every child anew
import matplotlib.pyplot  # noqa: F401
import torch
import torch._dynamo  # noqa: F401  the same: building a model on the meta device imports it

import train_tinystories
from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT
from phases import PHASES
from run.compare import differences
from run.folder import LOCK_NAME

SMALL = (
    "--device cpu --preset tiny --tokenizer builtin --d-model 16 --n-heads 2 --n-layers 1 --extra-layers 1 --n-experts 4 "
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

    def wait_until_it_prints(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in (self.folder / "out").read_text(encoding="utf-8", errors="replace"):
            assert time.monotonic() < deadline, f"it never printed {text!r}"
            time.sleep(0.002)


def start(arguments: list, prepare: Callable[[], None] = lambda: None) -> Child:
    """Starts a run; `prepare` is called in the child first, to break something there."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    outputs = [os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600) for name in ("out", "err")]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        for descriptor in outputs:
            os.close(descriptor)
        return Child(pid, folder)
    code = 70
    try:
        for number, descriptor in zip((1, 2), outputs):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, encoding="utf-8", closefd=False) for n in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        prepare()
        code = train_tinystories.main([str(argument) for argument in arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing may bring a child back into the program of its parent.
        os._exit(code)


@dataclass
class Workshop:
    """A folder with stories, their token cache, and `expected`: a run that nothing disturbed. `flags` are of all runs."""

    folder: Path
    expected: Path
    seconds: float  # that it took
    flags: tuple[str, ...] = ()

    @classmethod
    def at(cls, folder: Path, *flags: str) -> Workshop:
        shop = cls(folder, folder / "undisturbed", 0.0, flags)
        (folder / "stories.txt").write_text(END_OF_TEXT.join(builtin_split()[0][:600]), encoding="utf-8")
        shop.run(folder / "first")  # tokenises
        began = time.perf_counter()
        outcome = shop.run(shop.expected)
        shop.seconds = time.perf_counter() - began
        assert outcome.code == 0, outcome.err
        return shop

    def arguments(self, folder: Path, *more) -> list:
        """Of a new run; what is in `more` comes last and wins."""
        data = ("--data", self.folder / "stories.txt", "--cache-dir", self.folder / "cache")
        return [*SMALL, *self.flags, *data, "--checkpoint-dir", folder, *more]

    def run(self, folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> Outcome:
        return start(self.arguments(folder, *more), prepare).finish()

    def go_on(self, folder: Path, *more) -> Outcome:
        """What the messages tell the user of a killed run to do: `--resume`, or start where nothing was begun."""
        outcome = resume(folder)
        if outcome.code == 2 and "start without --resume" in outcome.err:
            outcome = self.run(folder, *more)
        return outcome


def resume(folder: Path, *more, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """The run in `folder`, resumed, to its end."""
    return start(["--resume", "--checkpoint-dir", folder, *more], prepare).finish()


def parted(expected: Path, folder: Path) -> list[str]:
    """In what the run in `folder` differs from the undisturbed one; empty if it is the same, bit for bit."""
    found = [f"{kind} {text}" for kind, text in differences(expected, folder)]
    names = {path.name for path in folder.iterdir()}
    surplus = names - {
        *(phase.file for phase in PHASES),
        "training_history.jsonl",
        "training_curves.png",
        "report.html",
        LOCK_NAME,
    }
    return found + ([f"left over: {sorted(surplus)}"] if surplus else [])
