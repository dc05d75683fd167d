"""What a run tells and draws besides training: it may break, and the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tqdm import tqdm

from durable_files import reason
from models import Transformer
from report.history import HistoryFailed
from training import torchrun
from training.shared_fate import shared_fate


@dataclass
class Decoration:
    """`is_left_out`: it broke, on this rank or on another one."""

    is_left_out: bool = False


@contextlib.contextmanager
def decoration(name: str, *models: Transformer) -> Iterator[Decoration]:
    """Inside, whatever breaks is told in one line, and is neither the end of the run nor its exit code.

    Two things are no decoration: a history that cannot be written, and another rank that is gone.

    Args:
        models: those that all ranks use together inside, where what breaks on one is left out on all; none where each
            works by itself.
    """
    outcome = Decoration()
    try:
        with shared_fate(*models) if models else contextlib.nullcontext():
            yield outcome
    except HistoryFailed:
        raise
    except Exception as error:
        if torchrun.is_lost(error):
            raise
        outcome.is_left_out = True
        tqdm.write(f"  ⚠️ {name} left out: {reason(error) or type(error).__name__}; the run goes on without it")
