"""When a run's state goes to the disk, and that this costs little.

Writing waits until the minutes asked for have passed, and until what all saving has cost is at most
`LARGEST_SHARE` of the run's time. A phase's end is always saved. Where the tensors cannot change
meanwhile, they are written by a thread while the run goes on: at a phase's end, when the next model is made
from them, and on CUDA, where the host holds a copy. On a CPU and on MPS a copy would take the memory that
the run needs: there the run waits.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from config import UserError
from models.shards import own
from run.run_state import RunState, write_run_state
from run.state_shards import write_state_shards
from training.machine import available_bytes
from training.ranks import team

LARGEST_SHARE = 0.05
# Until a first save has been timed: a slow disk.
ASSUMED_SECONDS, ASSUMED_BYTES_PER_SECOND = 0.05, 0.2e9


class Saver:
    """Writes `RunState`s into one folder, one at a time.

    `seconds_spent` is what the run has waited for it; `position` that of the last state, see `RunState`.
    """

    def __init__(self, folder: Path, minutes: float, position: float = 1.0):
        self.folder, self.minutes, self.position = folder, minutes, position
        self.started = self._last = time.perf_counter()
        self.seconds_spent = 0.0
        self._seconds, self._bytes = ASSUMED_SECONDS, ASSUMED_SECONDS * ASSUMED_BYTES_PER_SECOND
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None

    def is_due(self, n_bytes: float) -> bool:
        """Whether a state of `n_bytes` should be saved now."""
        now = time.perf_counter()
        if now - self._last < 60 * self.minutes or (self._thread and self._thread.is_alive()):
            return False
        expected = self._seconds * max(1.0, n_bytes / self._bytes)
        return self.seconds_spent + expected <= LARGEST_SHARE * (now - self.started)

    def save(self, state: RunState, unchanging: bool = False) -> None:
        """Writes `state`, in a thread where its tensors will not change (`unchanging`) or can be copied to the host.

        Several ranks wait, all of them: they write together.

        Raises:
            UserError: this state, or the one before it, could not be written.
        """
        self.wait()
        start = time.perf_counter()
        n_bytes = sum(own(tensor).nbytes for tensor in tensors_in(vars(state)))
        is_alone = team().is_alone
        if is_alone and not unchanging and has_room_for_copy(state, n_bytes):
            state, unchanging = on_host(state), True
        if is_alone and unchanging:
            self._thread = threading.Thread(target=self._write, args=(state, n_bytes), name="save")
            self._thread.start()
        else:
            self._write(state, n_bytes)
            self._raise_error()
        self._last = time.perf_counter()
        self.seconds_spent += self._last - start

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            UserError: it could not be written.
        """
        start = time.perf_counter()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.seconds_spent += time.perf_counter() - start
        self._raise_error()

    def _write(self, state: RunState, n_bytes: int) -> None:
        start = time.perf_counter()
        try:
            (write_run_state if team().is_alone else write_state_shards)(state, self.folder)
            self.position = state.position
        except UserError as error:
            self._error = error
        self._seconds, self._bytes = time.perf_counter() - start, max(1, n_bytes)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error:
            raise error


def has_room_for_copy(state: RunState, n_bytes: int) -> bool:
    """Whether the tensors are on CUDA, and the host has memory to spare for them."""
    is_cuda = any(tensor.is_cuda for tensor in tensors_in(vars(state)))
    return is_cuda and 2 * n_bytes < available_bytes(torch.device("cpu"))


def on_host(state: RunState) -> RunState:
    """The state with its tensors copied to the CPU."""
    return RunState(**mapped(vars(state), lambda tensor: tensor.detach().cpu()))


def mapped(value, change):
    """A structure of dicts, lists and tuples, with `change` made to its tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change) for item in value)
    return value


def tensors_in(value) -> list[Tensor]:
    tensors: list[Tensor] = []
    mapped(value, tensors.append)
    return tensors
