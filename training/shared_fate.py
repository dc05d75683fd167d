"""Work in which ranks wait for each other, and that may break on one of them while the run goes on.

A rank that leaves such work by an error would leave the others waiting in the next collective. So before every one of
them, and at the end, all say whether they are sound: then what breaks on one breaks on all, at the same place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.utils._python_dispatch import TorchDispatchMode

from durable_files import reason
from models import Transformer
from models.shards import is_shared
from training import torchrun
from training.ranks import Ranks, team

COLLECTIVES = ("c10d", "_c10d_functional")
WAITS = "wait_tensor"  # for a collective that has begun


class BrokeElsewhere(Exception):
    """Another rank had an error; the text says which, and what."""


@contextlib.contextmanager
def shared_fate(*models: Transformer) -> Iterator[None]:
    """Inside, an error of one rank is an error of all; a process by itself has nothing to agree on.

    Args:
        models: those that are used inside; they are made fit for their next pass.
    Raises:
        BrokeElsewhere: on the ranks that had no error of their own.
    """
    ranks = team()
    if ranks.is_alone:
        yield
        return
    try:
        try:
            with _BeforeCollectives(ranks):
                yield
        except Exception as error:
            if not isinstance(error, BrokeElsewhere) and not torchrun.is_lost(error):
                agree(ranks, error)
            raise
        agree(ranks)
    except Exception:
        for model in models:
            model.recover()
        raise


def agree(ranks: Ranks, error: Exception | None = None) -> None:
    """Tells the others of this rank's error. Raises BrokeElsewhere where one of theirs is all there is."""
    if not any(ranks.largest(error is not None)):
        return
    said = ranks.gathered(error and (reason(error) or type(error).__name__))
    if error is None:
        raise BrokeElsewhere("; ".join(f"rank {number}: {text}" for number, text in enumerate(said) if text))


class _BeforeCollectives(TorchDispatchMode):
    """Agrees before every collective, whoever calls it: FSDP, DTensor or we.

    Buffers are allocated by then, so that memory which runs out on one rank is among what is agreed on.
    """

    def __init__(self, ranks: Ranks):
        super().__init__()
        self.ranks = ranks

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(map(is_shared, types)):
            return NotImplemented  # DTensor makes of it what each rank does, and comes back with that
        if func.namespace in COLLECTIVES and WAITS not in func.name():
            agree(self.ranks)
        return func(*args, **(kwargs or {}))
