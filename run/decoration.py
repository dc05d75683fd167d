"""What a run tells and draws besides training: it may break, and the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tqdm import tqdm

from durable_files import reason
from report.history import HistoryFailed
from training import torchrun


@contextlib.contextmanager
def decoration(name: str) -> Iterator[None]:
    """Inside, whatever breaks is told in one line, and is neither the end of the run nor its exit code.

    Two things are no decoration: a history that cannot be written, and another rank that is gone.
    """
    try:
        yield
    except HistoryFailed:
        raise
    except Exception as error:
        if torchrun.is_lost(error):
            raise
        tqdm.write(f"  ⚠️ {name} left out: {reason(error) or type(error).__name__}; the run goes on without it")
