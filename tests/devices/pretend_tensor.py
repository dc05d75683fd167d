"""A tensor that says it is on a pretended device, and keeps its numbers in a CPU tensor.

To Python it is on `mps:0` or `cuda:0`, and it carries that backend's dispatch keys. C++ is told another device: its
autograd asks each device for a guard, and a build for CPUs has one for CPU and meta alone. So C++ believes `BELOW`, a meta
device of a number that nobody else uses; where an operator names that, the pretended device is meant.

torch's own FakeTensorMode has no numbers, and in a build for CPUs its backward pass on "cuda" aborts the process.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.devices.pretend_device import Call, DeviceFault, PretendDevice

BELOW = torch.device("meta", 7)
GENERATOR = torch.Generator


class PretendTensor(torch.Tensor):
    """`value`, a tensor of the same shape and strides, as if it were on `owner`."""

    value: Tensor
    owner: PretendDevice

    @staticmethod
    def __new__(cls, value: Tensor, owner: PretendDevice):
        shape = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=owner.place)
        self.value, self.owner = value, owner
        return self

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        owner = next(v.owner for v in leaves(args, (kwargs or {}).values()) if isinstance(v, PretendTensor))
        return compute(owner, operator, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: self.owner.place)
    is_cuda = property(lambda self: self.owner.kind == "cuda")
    is_mps = property(lambda self: self.owner.kind == "mps")
    is_cpu = is_meta = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        """As torch has it: the same tensor, with other numbers, and of their dtype."""
        torch._C.TensorBase.data.__set__(self, other)
        self.value = other.value

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_) -> str:
        with _disable_current_modes():
            return f"{self.owner.place}: {self.value!r}"

    def __deepcopy__(self, memo):
        return self.detach().clone().requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol):
        """As torch.save has it: the host waits for a copy. It is read again as a CPU tensor."""
        self.owner.waits_for("copy to the host")
        with _disable_current_modes():
            return self.value.detach().__reduce_ex__(protocol)

    def __getitem__(self, index):
        return torch._C.TensorBase.__getitem__(self, self._index(index))

    def __setitem__(self, index, value):
        return torch._C.TensorBase.__setitem__(self, self._index(index), value)

    def _index(self, index):
        """Of a list C++ would make a tensor on the device that it was told, without numbers."""
        if isinstance(index, list):
            return torch.tensor(index, dtype=None if index else torch.int64, device=self.device)
        return tuple(map(self._index, index)) if isinstance(index, tuple) else index

    def __format__(self, spec):
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def tolist(self):
        return self.cpu().tolist()


class PretendGenerator(GENERATOR):
    """A CPU's generator that says that it is on the pretended device."""

    _places: dict[int, tuple[torch.Generator, torch.device]] = {}  # holds them, so that no address comes again

    def __new__(cls, device="cpu"):
        self = GENERATOR.__new__(cls, "cpu")
        cls._places[self._cdata] = (self, torch.device(device))
        return self

    def __init__(self, device="cpu"):
        pass

    device = property(lambda self: device_of_generator(self))


def device_of_generator(generator: torch.Generator) -> torch.device:
    # Operators get the C++ generator in a new Python object.
    return PretendGenerator._places.get(generator._cdata, (None, torch.device("cpu")))[1]


class Pretending(TorchDispatchMode):
    """Inside, operators that make a tensor on the device without having one reach it, too."""

    @classmethod
    def _should_skip_dynamo(cls):  # which wraps each call in another, for a compiler that nobody uses here
        return False

    def __init__(self, device: PretendDevice):
        super().__init__()
        self.owner = device

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return compute(self.owner, operator, args, kwargs or {})


def compute(device: PretendDevice, operator: OpOverload, args: tuple, kwargs: dict):
    """An operator, as the device would have it: refused, noted, or computed on the CPU."""
    if operator is torch.ops.prim.device.default:
        return BELOW
    flat = leaves(args, kwargs.values())
    call = Call(
        operator,
        operator._schema.name.split("::")[1],
        args,
        kwargs,
        [value for value in flat if isinstance(value, Tensor)],
        [value for value in flat if isinstance(value, GENERATOR)],
        named_device(device, kwargs),
    )
    on_device = [tensor for tensor in call.tensors if isinstance(tensor, PretendTensor)]
    if not on_device and (call.target is None or call.target.type != device.kind):
        return operator(*args, **kwargs)
    if is_there_already(call):
        return PretendTensor(on_device[0].value.detach(), device)
    for look in device.before:
        look(device, call)
    device.operators[call.overload] += 1
    require_numbers(device, call)

    result = operator(*real(args), **real_options(device, call))
    for look in device.after:
        look(device, call, result)
    if call.name == "copy_":
        return args[0]
    if call.target is not None and call.target.type != device.kind:
        return result
    given = {id(real(tensor)): tensor for tensor in call.tensors}
    return on_its_device(result, given, device)


def leaves(*values) -> list:
    """What the arguments of an operator hold: they are values and lists of values."""
    flat = []
    for value in chain(*values):
        flat.extend(value) if isinstance(value, (list, tuple)) else flat.append(value)
    return flat


def real(value):
    """An argument as the CPU has it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(real, value))
    return value.value if isinstance(value, PretendTensor) else value


def on_its_device(result, given: dict[int, Tensor], device: PretendDevice):
    """A result as the device has it; what was written in place is the tensor that was given."""
    if isinstance(result, (list, tuple)):
        return type(result)(on_its_device(value, given, device) for value in result)
    if not isinstance(result, Tensor):
        return result
    return given[id(result)] if id(result) in given else PretendTensor(result, device)


def named_device(device: PretendDevice, kwargs: dict) -> torch.device | None:
    named = kwargs.get("device")
    if named is None:
        return None
    return (
        device.place if torch.device(named) == BELOW or torch.device(named).type == device.kind else torch.device(named)
    )


def is_there_already(call: Call) -> bool:
    """Whether this is a `.to` that changes nothing; C++ calls it a copy, as it was told another device."""
    if call.name != "_to_copy" or not isinstance(call.tensors[0], PretendTensor):
        return False
    tensor, options = call.tensors[0], call.kwargs
    same = call.target == tensor.device and options.get("dtype") in (None, tensor.dtype)
    return same and options.get("memory_format") is None


def require_numbers(device: PretendDevice, call: Call) -> None:
    """Raises DeviceFault where somebody asks a hollow device for a number, or the rehearsal itself has lost some."""
    is_read = call.name in ("_local_scalar_dense", "equal", "nonzero") or (
        call.name == "_to_copy" and call.target is not None and call.target.type == "cpu"
    )
    if device.is_hollow and is_read:
        raise DeviceFault(f"{call.overload} asks a hollow device for numbers")
    takes_shapes = call.name.endswith("_like") or call.name.startswith("new_")
    for tensor in call.tensors:
        if not isinstance(tensor, PretendTensor) and tensor.is_meta and not takes_shapes:
            raise DeviceFault(f"an argument of {call.overload} has no numbers: the rehearsal has lost them")


def real_options(device: PretendDevice, call: Call) -> dict:
    """Of the operator that is computed in the device's place."""
    options = {name: real(value) for name, value in call.kwargs.items()}
    if call.target is not None and call.target.type == device.kind:
        options["device"] = device.home
    return options | {name: False for name in ("pin_memory", "non_blocking") if name in options}
