"""Ctrl-C and SIGTERM: finish the step, save, leave. A second signal leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from training.ranks import team


class Stopped(BaseException):
    """A signal asked the run to end; the text says where it was.

    As Ctrl-C, it is no mistake that a handler of those may catch.
    """

    def __init__(self, number: int, where: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.exit_code = 128 + number


class StopSignals:
    """While it is open, SIGINT and SIGTERM raise `Stopped`: at once, or, inside `held`, when they are asked for."""

    def __init__(self):
        self._received = self._agreed = 0
        self._is_held = False

    def __enter__(self) -> StopSignals:
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = number
        # One of several that leaves between two steps would leave the others waiting: there the end of a step is the place.
        if not self._is_held and team().is_alone:
            raise Stopped(number, "between two phases")
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nfinishing this step, then saving; the same again stops at once\n")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal waits for `raise_if_asked`."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    @property
    def received(self) -> int:
        """The signal that has come to this process; 0 for none."""
        return self._received

    def agree(self) -> None:
        """Hears of the signal that has come to any of those that train together."""
        self.hear(*team().largest(self.received))

    def hear(self, number: int) -> None:
        """Takes note of the signal on which all agree; 0 for none."""
        self._agreed = number

    @property
    def is_asked(self) -> bool:
        return self._asked != 0

    def raise_if_asked(self, where: str) -> None:
        """Raises `Stopped` if a signal has come."""
        if self._asked:
            raise Stopped(self._asked, where)

    @property
    def _asked(self) -> int:
        return self._received if team().is_alone else self._agreed
