"""A device that is not there, and what it remembers of an operator that passes by.

The rehearsal runs the whole product on a "mps" or "cuda" that is made of CPU tensors (tests/devices/pretend_tensor.py).
Every operator becomes a `Call`. Three files look at it before it is computed: what such a device refuses (refusals.py),
what makes the host wait (host_waits.py), and what torch is known to compute wrongly there (torch_faults.py).

It shows devices, dtypes, operators and waits. It cannot show what the kernels compute, how fast, or in how much memory.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

ROOT = Path(__file__).resolve().parents[2]


class DeviceFault(AssertionError):
    """What a real device would refuse, or compute wrongly. No RuntimeError: the product handles those of a device."""


class Wait(NamedTuple):
    """One place at which the host waits for the device. By function: line numbers change with every edit."""

    what: str  # "copy to the host", "copy from the host", "nonzero", …
    file: str  # of the product, from its root
    function: str


class Call(NamedTuple):
    """One operator on its way to the device."""

    operator: OpOverload
    name: str  # without namespace and overload: "mm" of aten::mm.out
    args: tuple
    kwargs: dict
    tensors: list[Tensor]  # all of them, those in lists as well
    generators: list[torch.Generator]
    target: torch.device | None  # that it names: where its result will be

    @property
    def overload(self) -> str:
        """As native_functions.yaml writes it: "mm.out", and "mm" without a name for the overload."""
        return self.operator._schema.name.removeprefix("aten::") + (
            f".{self.operator._schema.overload_name}" if self.operator._schema.overload_name else ""
        )


@dataclass
class PretendDevice:
    """A pretended `kind`, "mps" or "cuda", of a compute `capability` (CUDA's alone).

    A hollow one has shapes and no numbers: it takes models of any size, and refuses to say what a tensor holds.
    `before` look at each call before it is computed, and may raise; `after` get its result as well, and may spoil it.
    """

    kind: str
    capability: tuple[int, int] = (9, 0)
    is_hollow: bool = False
    operators: Counter[str] = field(default_factory=Counter)
    waits: Counter[Wait] = field(default_factory=Counter)
    before: list[Callable[[PretendDevice, Call], None]] = field(default_factory=list)
    after: list[Callable[[PretendDevice, Call, object], None]] = field(default_factory=list)

    @property
    def place(self) -> torch.device:
        return torch.device(self.kind, 0)

    @property
    def home(self) -> torch.device:
        """Where its tensors really are."""
        return torch.device("meta" if self.is_hollow else "cpu")

    def waits_for(self, what: str) -> None:
        """The host waits, here and now."""
        self.waits[Wait(what, *product_place())] += 1

    def forget(self) -> None:
        """Clears what has been recorded so far."""
        self.operators.clear()
        self.waits.clear()


def product_place() -> tuple[str, str]:
    """File and function of the innermost frame that is the product's; of a test's where there is none."""
    frame = sys._getframe(1)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            file = path.relative_to(ROOT)
            is_rehearsal = file.parts[:2] == ("tests", "devices") and not file.name.startswith("test_")
            # Not a comprehension, which is a function of its own in some versions of Python.
            if not is_rehearsal and not frame.f_code.co_name.startswith("<"):
                return file.as_posix(), frame.f_code.co_name
        frame = frame.f_back
    return "", ""
