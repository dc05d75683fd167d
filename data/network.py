"""Network calls that always come back: a bound on the time, name look-up included."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

import requests

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call()` returns, if it does so within `seconds` of wall-clock time.

    A call that is late is left behind in its daemon thread: nothing can stop a hanging
    name look-up, but it does not keep the program from ending.

    Raises:
        TimeoutError: no result after `seconds`.
        BaseException: whatever `call()` itself raised.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work():
        try:
            outcome.put((call(), None))
        except BaseException as error:  # handed to the caller, who raises it
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no result within {seconds:g} s") from None
    if error is not None:
        raise error
    return result


def reachable(url: str, seconds: float) -> bool:
    """Whether any HTTP answer to `url`, even an error status, comes within `seconds`.

    A refused connection, a failed name look-up, a malformed address or silence is False.
    Proxies are taken from the environment, as the downloads take them.
    """
    try:
        # The limit inside `requests` bounds each read on its own, and no name look-up:
        # the outer one holds for all of it.
        within(seconds, lambda: requests.head(url, timeout=seconds, allow_redirects=False))
    except (OSError, ValueError):  # TimeoutError and every error of `requests` are OSErrors
        return False
    return True
