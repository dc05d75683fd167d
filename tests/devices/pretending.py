"""`with pretending("mps") as device:` — inside, torch has that device, and the product runs on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.utils._foreach_utils

from tests.devices.host_waits import note_waits
from tests.devices.pretend_device import PretendDevice
from tests.devices.pretend_tensor import PretendGenerator, Pretending, PretendTensor
from tests.devices.refusals import refuse
from tests.devices.torch_faults import refuse_known_faults, spoil

AVAILABLE_BYTES = 10**12


@contextlib.contextmanager
def pretending(kind: str, capability: tuple[int, int] = (9, 0), is_hollow: bool = False) -> Iterator[PretendDevice]:
    """Inside, the device `kind` ("mps" or "cuda") is there; gives what it remembers."""
    before, after = [refuse, refuse_known_faults, note_waits], [spoil]
    device = PretendDevice(kind, capability, is_hollow, before=before, after=after)
    lifts_only_cpu = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for owner, name, value in replacements(device):
            stack.enter_context(mock.patch.object(owner, name, value))
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with Pretending(device):
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_only_cpu)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def replacements(device: PretendDevice) -> list[tuple]:
    """What torch says about its devices, and the few functions that would make a tensor past the dispatcher."""
    move, make = torch.Tensor.to, torch.tensor

    def numbered(place):
        """With a number, as the device of each tensor has one."""
        return (
            device.place
            if isinstance(place, (str, torch.device)) and torch.device(place).type == device.kind
            else place
        )

    def to(self, *args, **options):
        if args and isinstance(args[0], PretendTensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if "device" in options:
            options["device"] = numbered(options["device"])
        return move(self, *map(numbered, args), **options)

    def tensor(data, *, device=None, **options):
        return make(data, **options) if device is None else make(data, **options).to(device)

    def pin_memory(self, *_):
        pinned = self.clone()
        pinned.is_pretend_pinned = True
        return pinned

    def synchronize(*_):
        device.waits_for("synchronize")

    return [
        (torch, "tensor", tensor),
        (torch, "Generator", PretendGenerator),
        (torch.Tensor, "to", to),
        (torch.Tensor, "pin_memory", pin_memory),
        (torch.utils._foreach_utils, "_foreach_supported_types", [torch.Tensor, PretendTensor]),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_available", lambda: device.kind == "cuda"),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "get_device_name", lambda *_: "Pretended"),
        (torch.cuda, "get_device_capability", lambda *_: device.capability),
        (torch.cuda, "max_memory_allocated", lambda *_: 0),
        (torch.cuda, "mem_get_info", lambda *_: (AVAILABLE_BYTES, AVAILABLE_BYTES)),
        (torch.cuda, "synchronize", synchronize),
        (torch.mps, "recommended_max_memory", lambda: AVAILABLE_BYTES),
        (torch.mps, "driver_allocated_memory", lambda: 0),
        (torch.mps, "synchronize", synchronize),
        (torch.backends.mps, "is_available", lambda: device.kind == "mps"),
    ]
