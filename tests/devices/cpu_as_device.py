"""A CPU that goes the ways of a device, to compare with: the same operators, hence the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from models import experts


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **kwargs or {})


@contextlib.contextmanager
def as_on(kind: str) -> Iterator[None]:
    """Inside, a CPU goes the device's ways where they round otherwise, so that the bits are the same on every CPU.

    Attention has a kernel of its own there; experts' rows are rounded up or not; and where operators are watched,
    torch takes eigenvalues by another algorithm.
    """
    multiple = experts.row_multiple
    as_there = mock.patch.object(experts, "row_multiple", lambda _, dtype: multiple(torch.device(kind), dtype))
    with as_there, sdpa_kernel(SDPBackend.MATH), Watching():
        yield
