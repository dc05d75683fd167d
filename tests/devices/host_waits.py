"""What makes the host wait for the device: reading a number, a shape that depends on numbers, copies."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from tests.devices.pretend_device import Call, PretendDevice
from tests.devices.pretend_tensor import PretendTensor

READ_NUMBERS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "_linalg_eigh",
}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


def note_waits(device: PretendDevice, call: Call) -> None:
    """Adds to the device's waits those that this operator costs."""
    if call.name in READ_NUMBERS or (call.name == "bincount" and device.kind == "cuda"):
        device.waits_for("a number is read" if call.name == "_local_scalar_dense" else call.name)
    elif call.name in INDEXING:
        note_indices(device, call)
    elif call.name == "repeat_interleave" and call.kwargs.get("output_size") is None:
        device.waits_for("repeat_interleave without output_size")
    elif call.name == "_to_copy":
        note_copy(device, call.tensors[0], call.target, call.kwargs.get("non_blocking", False))
    elif call.name == "copy_":
        to, source = call.args[:2]
        non_blocking = call.args[2] if len(call.args) > 2 else call.kwargs.get("non_blocking", False)
        if source.dim() or isinstance(source, PretendTensor):  # a number goes along with the launch
            note_copy(device, source, to.device, non_blocking)
    elif call.name == "_grouped_mm" and not has_grouped_mm(device):
        device.waits_for("copy to the host")  # the fallback is a loop over offsets that the host has to know


def note_indices(device: PretendDevice, call: Call) -> None:
    for index in pytree.tree_leaves(call.args[1]):
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
            device.waits_for("nonzero")
        elif isinstance(index, torch.Tensor) and not isinstance(index, PretendTensor):
            device.waits_for("copy from the host")


def note_copy(device: PretendDevice, source: torch.Tensor, to: torch.device | None, non_blocking: bool) -> None:
    """Only from pinned memory, and only on CUDA, does a copy between the two sides go by itself."""
    is_there = isinstance(source, PretendTensor)
    if to is None or source.numel() == 0 or is_there == (to.type == device.kind):
        return
    if is_there:
        device.waits_for("copy to the host")
    elif not (non_blocking and device.kind == "cuda" and getattr(source, "is_pretend_pinned", False)):
        device.waits_for("copy from the host")


def has_grouped_mm(device: PretendDevice) -> bool:
    """torch 2.13 has a kernel for compute capability 9 and 10."""
    return device.kind == "cuda" and device.capability[0] in (9, 10)
