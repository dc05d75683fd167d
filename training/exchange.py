"""Matrices of which every rank holds some rows, or some columns, for work that needs them whole.

Of n matrices every rank has a part; afterwards every rank has some of the matrices whole, and back. That is an
all-to-all, which DTensor makes of a redistribution between two dimensions: each rank sends and receives about as
many bytes as it holds, and none ever holds more matrices than its share. (gloo has no such all-to-all: on a CPU
DTensor gathers everything and keeps its share.)

Shape letters: N matrices, n those that one rank has whole, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def on_whole_matrices(
    work: Callable[[Tensor], Tensor], own_part: Tensor, shape_OI: torch.Size, dim: int, mesh
) -> Tensor:
    """What `work` makes of whole matrices (n, O, I) → (n, O, I), given and returned as this rank's part of each.

    Args:
        own_part: (N, o, I) or (N, O, i), split over the ranks of `mesh` as torch.chunk would.
        dim: along which, 1 or 2.
    """
    O, I = shape_OI
    layout = {"shape": (len(own_part), O, I), "stride": (O * I, I, 1)}
    split = DTensor.from_local(own_part.contiguous(), mesh, [Shard(dim)], run_check=False, **layout)
    matrices_nOI = split.redistribute(placements=[Shard(0)]).to_local()
    done = DTensor.from_local(work(matrices_nOI).contiguous(), mesh, [Shard(0)], run_check=False, **layout)
    return done.redistribute(placements=[Shard(dim)]).to_local()
