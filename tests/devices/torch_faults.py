"""What torch is known to compute wrongly on a device, by shape: on a Mac with torch 2.13, on CUDA's capability 10.

docs/DEVICES.md lists them with their issues. Where the fault is known by the shapes, the operator is refused; where it is
known by the numbers, the result is spoilt as the device would spoil it.
"""

from __future__ import annotations

import torch

from tests.devices.host_waits import has_grouped_mm
from tests.devices.pretend_device import Call, DeviceFault, PretendDevice, product_place
from tests.devices.pretend_tensor import PretendTensor

LONGEST_INNER = 32_766
SMALLEST_OUTER = 16
WIDE_OUTPUT, LINEAR_ROWS = 50_000, 9 * 1024
LARGEST_BMM = 2**32
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}  # where the first factor stands


def refuse_known_faults(device: PretendDevice, call: Call) -> None:
    """Raises DeviceFault for an operator that torch gets silently wrong on the real device."""
    if device.kind != "mps":
        return
    for fault in (long_inner_dimension, unwritten_slice, wide_linear, large_bmm, strided_sort, read_after_free):
        if text := fault(call):
            file, function = product_place()
            raise DeviceFault(f"{text}, in {call.overload} ({file}, {function})")


def long_inner_dimension(call: Call) -> str:
    if call.name not in PRODUCTS:
        return ""
    left, right = factors(call)
    inner, outer = left.shape[-1], min(left.shape[-2], right.shape[-1])
    if inner > LONGEST_INNER and outer >= SMALLEST_OUTER:
        return f"an inner dimension of {inner:,}: wrong on M1 and M2 (pytorch #195163, #193487, #153957)"
    return ""


def unwritten_slice(call: Call) -> str:
    out = call.kwargs.get("out")
    if call.name in PRODUCTS and out is not None and out.value.storage_offset():
        return "out= is a slice that begins later than its memory: never written on macOS 14 (pytorch #193385)"
    return ""


def wide_linear(call: Call) -> str:
    """F.linear on MPS is one kernel; in a build for CPUs it arrives as the mm or addmm that it is made of."""
    if call.name not in ("mm", "addmm"):
        return ""
    left, right = factors(call)
    if left.shape[0] >= LINEAR_ROWS and right.shape[1] >= WIDE_OUTPUT:
        return f"{left.shape[0]:,} rows times {right.shape[1]:,} outputs: wrong on MPS (pytorch #122045)"
    return ""


def large_bmm(call: Call) -> str:
    if call.name not in ("bmm", "baddbmm", "baddbmm_"):
        return ""
    left, right = factors(call)
    n_outputs = left.shape[0] * left.shape[1] * right.shape[2]
    if max(n_outputs, left.numel(), right.numel()) > LARGEST_BMM:
        return f"a batched product of more than 2³² elements, {n_outputs:,}: wrong on MPS (pytorch #197636)"
    return ""


def strided_sort(call: Call) -> str:
    if call.name in ("sort", "argsort") and not call.args[0].value.is_contiguous():
        return "a tensor that is not contiguous: its strides are ignored on MPS (pytorch #175187)"
    return ""


def read_after_free(call: Call) -> str:
    is_copy = call.name == "_to_copy" and call.target is not None and call.target.type == "mps"
    if (
        is_copy
        and call.kwargs.get("non_blocking")
        and not isinstance(call.tensors[0], PretendTensor)
        and call.tensors[0].numel()
    ):
        return "non_blocking from pageable memory, which may be read when it is freed (pytorch #189690, #139550)"
    return ""


def factors(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    first = PRODUCTS[call.name]
    return call.args[first], call.args[first + 1]


def spoil(device: PretendDevice, call: Call, result) -> None:
    """On CUDA's capability 10 the gradient of an expert without rows is whatever was in memory (pytorch #172439)."""
    if call.name != "_grouped_mm" or not has_grouped_mm(device) or device.capability[0] != 10 or device.is_hollow:
        return
    left, right = call.args[:2]
    if left.dim() == right.dim() == 2:
        ends_E = (call.args[2] if len(call.args) > 2 else call.kwargs["offs"]).value
        result[ends_E.diff(prepend=ends_E.new_zeros(1)) == 0] = torch.nan
