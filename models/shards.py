"""A model whose parameters several ranks share, by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each parameter is a DTensor of which a rank holds a part; a block's parameters are whole on every rank while it
computes, and at no other time. What works parameter by parameter, as growth does, takes each whole, one at a time:

    for name, parameter in new_model.named_parameters():
        with filling(parameter) as value:
            value.copy_(grown(whole_parameter(old_model, name)))

Without ranks `whole` and `filling` hand on what they are given. Nothing of torch.distributed is loaded for that. A weight
that lean memory keeps in two parts (models/lean.py), which no ranks share, is made whole by `whole_parameter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from config import ModelConfig
from models.lean import joined
from models.transformer import Transformer


def is_shared(tensor: Tensor) -> bool:
    """Whether ranks share the tensor: it is a DTensor."""
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that ranks share, on every one of them (they all have to ask); any other as it is."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def whole_weight(layer: nn.Module) -> Tensor:
    """The layer's weight, `whole`, and with both its parts where it is kept in two."""
    low = getattr(layer, "weight_low", None)
    return whole(layer.weight) if low is None else joined(layer.weight, low)


def whole_parameter(model: Transformer, name: str) -> Tensor:
    """The parameter of that name, as `whole_weight`."""
    layer_name, _, kind = name.rpartition(".")
    layer = model.get_submodule(layer_name)
    return whole_weight(layer) if kind == "weight" else whole(getattr(layer, kind))


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that ranks share, in place; any other as it is."""
    return tensor.detach().to_local() if is_shared(tensor) else tensor


def shared_dim(shape: torch.Size, n_ranks: int) -> int:
    """The dimension along which a parameter is split.

    The first: rows of a matrix, experts of a stack. A stack of fewer experts than ranks, or of a number that they do
    not divide, is split by the rows of every expert, or by their columns, so that all ranks hold as much. (FSDP splits
    only a first dimension unevenly.)
    """
    evenly = [dim for dim in range(len(shape)) if len(shape) > 2 and shape[dim] % n_ranks == 0]
    return evenly[0] if evenly else 0


def shared_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, alike on all ranks, shared by the ranks that share `like`; itself where none do."""
    if not is_shared(like):
        return value
    from torch.distributed.tensor import Shard, distribute_tensor

    placement = Shard(shared_dim(value.shape, like.device_mesh.size()))
    return distribute_tensor(value, like.device_mesh, [placement], src_data_rank=None)


def own_range(tensor: Tensor) -> tuple[int, int, int]:
    """(dim, start, stop) of this rank's part of a tensor that ranks share; all of any other."""
    if not is_shared(tensor):
        return 0, 0, tensor.shape[0]
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    dim = tensor.placements[0].dim
    size, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return dim, start[dim], start[dim] + size[dim]


@contextmanager
def filling(parameter: Tensor) -> Iterator[Tensor]:
    """The parameter, whole, to be filled; of one that ranks share each keeps its part of what was filled in."""
    if not is_shared(parameter):
        yield parameter
        return
    value = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    yield value
    own(parameter).copy_(own(shared_as(value, parameter)))


def share(model: Transformer, mesh) -> Transformer:
    """Shards the model, in place, over all ranks of a one-dimensional mesh: each block by itself, then the rest."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shared_dim(parameter.shape, mesh.size()))

    for block in model.blocks:
        fully_shard(block, mesh=mesh, shard_placement_fn=placement)
    # The embedding stays whole until the backward pass, as the loss needs it once more behind `hidden`.
    fully_shard(model, mesh=mesh, shard_placement_fn=placement)
    register_fsdp_forward_method(model, "hidden")
    return model


def empty_on_ranks(config: ModelConfig, mesh, device: torch.device | str, dtype=torch.float32) -> Transformer:
    """As `Transformer.empty`, shared: no rank ever allocates more than its part."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    return share(model, mesh).to_empty(device=device)


def empty_like(model: Transformer, config: ModelConfig) -> Transformer:
    """An unfilled model of another geometry, on the device, in the dtype and over the ranks of `model`."""
    weight = model.embedding.weight
    if not is_shared(weight):
        return Transformer.empty(config, weight.device, weight.dtype)
    return empty_on_ranks(config, weight.device_mesh, weight.device, weight.dtype)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, a block's parameters are whole on every rank, so that parts of it can be called by themselves."""
    if not hasattr(module, "unshard"):
        yield module
        return
    module.unshard()
    try:
        yield module
    finally:
        module.reshard()
