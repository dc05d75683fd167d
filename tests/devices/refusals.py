"""What a real device refuses: tensors of two devices, another device's generator, fp64 on MPS."""

from __future__ import annotations

import torch

from tests.devices.pretend_device import Call, DeviceFault, PretendDevice, product_place
from tests.devices.pretend_tensor import PretendTensor, device_of_generator

# From one device to another is what these are for.
CROSSING = {"_to_copy", "copy_", "lift_fresh", "_local_scalar_dense", "set_"}
# They take a CPU tensor for its shape and dtype alone, or, as an index, bring it over (with a wait, see host_waits.py).
TAKE_CPU_TENSORS = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "new_empty", "new_zeros", "new_full",
    "index", "index_put_", "index_put", "_index_put_impl_",
}  # fmt: skip
# Besides pointwise operators: a CPU tensor without dimensions is a number to them.
TAKE_CPU_NUMBERS = {"index_put_", "index_put", "_index_put_impl_", "fill_", "masked_fill", "masked_fill_"}


def refuse(device: PretendDevice, call: Call) -> None:
    """Raises DeviceFault for an operator that the real device would not compute."""
    for refusal in (two_devices, foreign_generator, no_fp64):
        if text := refusal(device, call):
            file, function = product_place()
            raise DeviceFault(f"{text}, in {call.overload} ({file}, {function})")


def two_devices(device: PretendDevice, call: Call) -> str:
    if call.name in CROSSING or call.name in TAKE_CPU_TENSORS:
        return ""
    takes_numbers = torch.Tag.pointwise in call.operator.tags or call.name in TAKE_CPU_NUMBERS
    for tensor in call.tensors:
        is_foreign = not isinstance(tensor, PretendTensor) and tensor.device.type == "cpu"
        if is_foreign and not (takes_numbers and tensor.dim() == 0):
            return f"a CPU tensor {tuple(tensor.shape)} beside tensors on {device.place}"
    return ""


def foreign_generator(device: PretendDevice, call: Call) -> str:
    on_device = call.target or device.place
    for generator in call.generators:
        if device_of_generator(generator).type != on_device.type:
            return f"a generator of {device_of_generator(generator)} for a tensor on {on_device}"
    return ""


def no_fp64(device: PretendDevice, call: Call) -> str:
    if device.kind != "mps" or (call.target or device.place).type != "mps":
        return ""
    named = call.kwargs.get("dtype")
    arriving = named is None and call.name == "_to_copy" and call.tensors[0].dtype
    there = {tensor.dtype for tensor in call.tensors if isinstance(tensor, PretendTensor)}
    return "float64 on MPS" if torch.float64 in {named, arriving, *there} else ""
